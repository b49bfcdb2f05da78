//! Stop strings.
//!
//! Where a text stops must not depend on how it was cut into pieces, or a decoding that keeps four tokens a step would
//! stop elsewhere than one that keeps one. So the text is read byte by byte, and the first byte that completes a stop
//! string ends it.

use std::ops::Range;
use std::sync::Arc;

/// Watches a text for stop strings, across all borders between its pieces.
///
/// Text is held back while it may still turn into a stop string, and no longer.
#[derive(Clone)]
pub struct StopText {
    /// Sorted, so that those with a common beginning are a range.
    stops: Arc<[String]>,
    held: String,
    open: Vec<Open>,
    stopped: bool,
}

/// A place in the held text at which a stop string may have begun.
#[derive(Clone)]
struct Open {
    start: usize,
    /// The stop strings that agree with the text from `start` on.
    agree: Range<usize>,
}

impl StopText {
    /// Watches for these strings; empty ones are ignored.
    pub fn new(mut stops: Vec<String>) -> Self {
        stops.retain(|stop| !stop.is_empty());
        stops.sort_unstable();
        stops.dedup();
        Self { stops: stops.into(), held: String::new(), open: Vec::new(), stopped: false }
    }

    /// Takes text and gives what no stop string can claim any more, and whether a stop string is complete. The text
    /// ends before the one that is complete first; of several, before the longest.
    pub fn push(&mut self, text: &str) -> (String, bool) {
        if self.stopped {
            return (String::new(), true);
        }
        let before = self.held.len();
        self.held.push_str(text);
        for at in before..self.held.len() {
            if let Some(start) = self.advance(at) {
                self.stopped = true;
                self.held.truncate(start);
                return (std::mem::take(&mut self.held), true);
            }
        }
        let certain = self.open.first().map_or(self.held.len(), |open| open.start);
        for open in &mut self.open {
            open.start -= certain;
        }
        let rest = self.held.split_off(certain);
        (std::mem::replace(&mut self.held, rest), false)
    }

    /// Ends the text and gives what was held back.
    pub fn finish(&mut self) -> String {
        self.open.clear();
        std::mem::take(&mut self.held)
    }

    /// Reads the byte at `at`; gives where the stop string starts that it completes.
    fn advance(&mut self, at: usize) -> Option<usize> {
        let byte = self.held.as_bytes()[at];
        self.open.push(Open { start: at, agree: 0..self.stops.len() });
        let stops = &self.stops;
        self.open.retain_mut(|open| {
            let depth = at - open.start;
            let next = |stop: &String| stop.as_bytes().get(depth).copied();
            let agreeing = &stops[open.agree.clone()];
            let first = agreeing.partition_point(|stop| next(stop) < Some(byte));
            let last = agreeing.partition_point(|stop| next(stop) <= Some(byte));
            open.agree = open.agree.start + first..open.agree.start + last;
            !open.agree.is_empty()
        });
        // The shortest of those that agree sorts first, and the earliest start is the longest string.
        self.open
            .iter()
            .find(|open| stops[open.agree.start].len() == at - open.start + 1)
            .map(|open| open.start)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The same by brute force: the shortest beginning of the text that ends in a stop string, without it.
    fn naive(text: &str, stops: &[String]) -> (String, bool) {
        for end in 0..=text.len() {
            let ending =
                |stop: &&String| !stop.is_empty() && text.as_bytes()[..end].ends_with(stop.as_bytes());
            if let Some(stop) = stops.iter().filter(ending).max_by_key(|stop| stop.len()) {
                return (text[..end - stop.len()].to_owned(), true);
            }
        }
        (text.to_owned(), false)
    }

    #[test]
    fn agrees_with_naive_search_however_the_text_is_cut() {
        let mut seed = 1u64;
        let mut below = |n: usize| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (seed >> 33) as usize % n
        };
        let letters = ['a', 'b', 'ä', '本'];
        for _ in 0..20_000 {
            let mut word =
                |most: usize| -> String { (0..below(most + 1)).map(|_| letters[below(4)]).collect() };
            let stops: Vec<String> = (0..3).map(|_| word(4)).collect();
            let text = word(14);
            let mut stop = StopText::new(stops.clone());
            let (mut released, mut stopped) = (String::new(), false);
            let mut pieces = text.chars().peekable();
            while pieces.peek().is_some() && !stopped {
                let piece: String = pieces.by_ref().take(1 + below(3)).collect();
                let (fresh, now) = stop.push(&piece);
                released.push_str(&fresh);
                stopped = now;
            }
            if !stopped {
                released.push_str(&stop.finish());
            }
            assert_eq!((released, stopped), naive(&text, &stops), "{text:?} {stops:?}");
        }
    }

    #[test]
    fn holds_back_no_more_than_it_must() {
        let mut stop = StopText::new(vec!["\n\n".into(), "END".into()]);
        assert_eq!(stop.push("one\n"), ("one".into(), false));
        assert_eq!(stop.push("two E"), ("\ntwo ".into(), false));
        assert_eq!(stop.push("N"), (String::new(), false));
        assert_eq!(stop.push("d"), ("ENd".into(), false));
        assert_eq!(stop.push("\n"), (String::new(), false));
        assert_eq!(stop.push("\nthree"), (String::new(), true));
        assert_eq!(stop.finish(), "");
    }

    #[test]
    fn many_stop_strings() {
        let stops = (0..100_000).map(|n| format!("stop {n}!")).collect();
        let mut stop = StopText::new(stops);
        let (text, stopped) = stop.push(&"stop ".repeat(20_000));
        assert_eq!((text.len(), stopped), (99_995, false));
        assert_eq!(stop.push("99999!"), (String::new(), true));
    }
}
