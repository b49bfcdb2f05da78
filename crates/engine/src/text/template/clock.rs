//! The date as `strftime_now` writes it.

use std::fmt::Write;
use std::time::{SystemTime, UNIX_EPOCH};

use minijinja::Error;

use super::budget::{Budget, refused};

const DAYS: [&str; 7] = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"];
const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
const ALLOWED: &str = "%Y %y %m %B %b %h %d %e %j %A %a %w %u %H %I %M %S %f %p %Z %z %F %T %D %R %s %n %t %%, \
                       and - behind the % for numbers without zeros in front";

/// The present time in UTC in this format.
pub(super) fn now(budget: &Budget, format: &str) -> Result<String, Error> {
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    // What a directive writes is at most ten bytes.
    budget.draw(format.len().saturating_mul(5))?;
    budget.read(format.len())?;
    write(format, seconds)
}

/// A time, in seconds since 1970, as C's `strftime` writes it in English.
pub(super) fn write(format: &str, seconds: u64) -> Result<String, Error> {
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    let (year, month, day) = civil(days);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    let first = days_before_year(year);
    let weekday = (days + 3) % 7;
    let mut out = String::new();
    let mut rest = format.chars();
    while let Some(c) = rest.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        let mut directive = rest.next();
        let plain = directive == Some('-');
        if plain {
            directive = rest.next();
        }
        let twelve = (hour + 11) % 12 + 1;
        let month_name = MONTHS[month as usize - 1];
        let day_name = DAYS[weekday as usize];
        // A number, its width, and what stands in front of it.
        let number = match directive {
            Some('Y') => Some((year, 4, '0')),
            Some('y') => Some((year % 100, 2, '0')),
            Some('m') => Some((month, 2, '0')),
            Some('d') => Some((day, 2, '0')),
            Some('e') => Some((day, 2, ' ')),
            Some('j') => Some((days - first + 1, 3, '0')),
            Some('H') => Some((hour, 2, '0')),
            Some('I') => Some((twelve, 2, '0')),
            Some('M') => Some((minute, 2, '0')),
            Some('S') => Some((second, 2, '0')),
            Some('f') => Some((0, 6, '0')),
            Some('w') => Some(((weekday + 1) % 7, 1, '0')),
            Some('u') => Some((weekday + 1, 1, '0')),
            Some('s') => Some((seconds, 1, '0')),
            _ => None,
        };
        let written = match (number, directive) {
            (Some((number, _, _)), _) if plain => write!(out, "{number}"),
            (Some((number, width, '0')), _) => write!(out, "{number:0width$}"),
            (Some((number, width, _)), _) => write!(out, "{number:width$}"),
            (None, Some('B')) => out.write_str(month_name),
            (None, Some('b' | 'h')) => out.write_str(&month_name[..3]),
            (None, Some('A')) => out.write_str(day_name),
            (None, Some('a')) => out.write_str(&day_name[..3]),
            (None, Some('p')) => out.write_str(if hour < 12 { "AM" } else { "PM" }),
            (None, Some('Z')) => out.write_str("UTC"),
            (None, Some('z')) => out.write_str("+0000"),
            (None, Some('F')) => write!(out, "{year:04}-{month:02}-{day:02}"),
            (None, Some('T')) => write!(out, "{hour:02}:{minute:02}:{second:02}"),
            (None, Some('D')) => write!(out, "{month:02}/{day:02}/{:02}", year % 100),
            (None, Some('R')) => write!(out, "{hour:02}:{minute:02}"),
            (None, Some('n')) => out.write_char('\n'),
            (None, Some('t')) => out.write_char('\t'),
            (None, Some('%')) => out.write_char('%'),
            (None, other) => {
                let other = other.map(String::from).unwrap_or_default();
                return Err(refused(format!("strftime_now has %{other}; allowed are {ALLOWED}")));
            }
        };
        written.map_err(|_| refused("a date cannot be written"))?;
    }
    Ok(out)
}

fn is_leap(year: u64) -> bool {
    year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400))
}

/// Days from 1970 to the first day of a year.
fn days_before_year(year: u64) -> u64 {
    let leaps = |year: u64| year / 4 - year / 100 + year / 400;
    365 * (year - 1970) + leaps(year - 1) - leaps(1969)
}

/// Year, month and day of a day since 1970.
fn civil(days: u64) -> (u64, u64, u64) {
    // The clock of no machine is past the year 9999; a guess that is too late by a year at most.
    let mut year = 1970 + days / 365;
    while days_before_year(year) > days {
        year -= 1;
    }
    let mut day = days - days_before_year(year);
    let february = if is_leap(year) { 29 } else { 28 };
    for (month, len) in [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31].into_iter().enumerate() {
        if day < len {
            return (year, month as u64 + 1, day + 1);
        }
        day -= len;
    }
    (year, 12, 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_as_python_writes_them() {
        let all = "%Y-%m-%d %B %b %A %a %H:%M:%S %y %j|%e|%-d %I %p %% %F %T";
        // datetime.fromtimestamp(n, timezone.utc).strftime(all)
        let cases = [
            (0, "1970-01-01 January Jan Thursday Thu 00:00:00 70 001| 1|1 12 AM % 1970-01-01 00:00:00"),
            (
                951_782_400,
                "2000-02-29 February Feb Tuesday Tue 00:00:00 00 060|29|29 12 AM % 2000-02-29 00:00:00",
            ),
            (
                1_735_689_599,
                "2024-12-31 December Dec Tuesday Tue 23:59:59 24 366|31|31 11 PM % 2024-12-31 23:59:59",
            ),
            (
                1_772_370_000,
                "2026-03-01 March Mar Sunday Sun 13:00:00 26 060| 1|1 01 PM % 2026-03-01 13:00:00",
            ),
            (
                4_107_542_400,
                "2100-03-01 March Mar Monday Mon 00:00:00 00 060| 1|1 12 AM % 2100-03-01 00:00:00",
            ),
        ];
        for (seconds, expected) in cases {
            assert_eq!(write(all, seconds).unwrap(), expected);
        }
        assert_eq!(write("d'été", 0).unwrap(), "d'été");
        for wrong in ["%Q", "%", "%-"] {
            assert!(write(wrong, 0).unwrap_err().to_string().contains("allowed are %Y"));
        }
    }
}
