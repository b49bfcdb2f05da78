//! Rows that walk the same tiles on a card, but for what each has staged in the last two.
//!
//! The last tiles of a branch have committed positions, which all of its rows see, and free places. What rows have staged
//! there fills the places, several rows' own ancestors beside each other, and each row knows the places of its own.
//! Rows whose ancestors have no room together walk in circles of their own.

use super::Sight;
use crate::kv::PAGE;

/// Rows of a circle, at most.
const ROWS: usize = 32;

/// Words of a circle, beside its rows and guests.
const WORDS: usize = 9;

/// Rows of one branch with the same tile of their own.
#[derive(Debug, Clone)]
pub(crate) struct Circle {
    rows: Vec<u32>,
    tile: usize,
    /// The staged rows that any of them sees in the tile before their own, and in their own.
    guests: [Vec<u32>; 2],
}

/// How much of a row's path lies in tiles before `tile`.
fn before(sight: &Sight, row: usize, tile: usize) -> usize {
    (tile * PAGE).saturating_sub(sight.committed(row)).min(sight.path(row).len())
}

/// The parts of a row's path that lie in the tile before its own, and in its own.
fn last(sight: &Sight, row: usize, tile: usize) -> [&[u32]; 2] {
    let (path, own) = (sight.path(row), before(sight, row, tile));
    [&path[before(sight, row, tile.saturating_sub(1)).min(own)..own], &path[own..]]
}

/// Places of a tile that no committed position takes.
fn free(sight: &Sight, row: usize, tile: usize) -> usize {
    PAGE - sight.committed(row).saturating_sub(tile * PAGE).min(PAGE)
}

impl Circle {
    /// The circles of a step; every row is in one.
    pub(super) fn all(sight: &Sight) -> Vec<Self> {
        let mut circles: Vec<Self> = Vec::new();
        for row in 0..sight.rows() {
            if !circles.iter_mut().rev().any(|circle| circle.admits(sight, row)) {
                let tile = sight.position(row) / PAGE;
                let guests = last(sight, row, tile).map(<[u32]>::to_vec);
                circles.push(Self { rows: vec![row as u32], tile, guests });
            }
        }
        circles
    }

    /// Takes a row in, where it belongs here and there is room.
    fn admits(&mut self, sight: &Sight, row: usize) -> bool {
        let first = self.rows[0] as usize;
        let same = self.rows.len() < ROWS
            && self.tile == sight.position(row) / PAGE
            && sight.branch_of(first) == sight.branch_of(row);
        let common = |row| &sight.path(row)[..before(sight, row, self.tile.saturating_sub(1))];
        if !same || common(first) != common(row) {
            return false;
        }
        let own = last(sight, row, self.tile);
        let new = [0, 1]
            .map(|i| own[i].iter().filter(|row| !self.guests[i].contains(row)).copied().collect::<Vec<_>>());
        let tiles = [self.tile.saturating_sub(1), self.tile];
        if (0..2).any(|i| self.guests[i].len() + new[i].len() > free(sight, row, tiles[i])) {
            return false;
        }
        for (guests, new) in self.guests.iter_mut().zip(new) {
            guests.extend(new);
        }
        self.rows.push(row as u32);
        true
    }

    /// All of them as words for a card, `at` words behind the array's beginning: where the rows of each begin and how many
    /// they are, their tile, where the first one's pages and path begin and its committed positions, where the guests
    /// begin and how many they are in both tiles; then all rows, each circle's with its guests behind them.
    pub(super) fn words(sight: &Sight, at: usize) -> Vec<u32> {
        let circles = sight.circles();
        let mut words = Vec::new();
        let mut rows = at + WORDS * circles.len();
        for circle in circles {
            let [pages, committed, path] = sight.text_of(circle.rows[0] as usize);
            let guests = rows + circle.rows.len();
            let [before, own] = circle.guests.each_ref().map(Vec::len);
            let each = [rows, circle.rows.len(), circle.tile, pages, path, committed, guests, before, own];
            words.extend(each.map(|word| word as u32));
            rows = guests + before + own;
        }
        for Self { rows, guests: [before, own], .. } in circles {
            words.extend(rows.iter().chain(before).chain(own));
        }
        words
    }

    /// All paths, row by row: each staged row, and above it, in the upper eight bits, its place in its tile.
    pub(super) fn paths(sight: &Sight) -> Vec<u32> {
        let mut words = sight.paths.clone();
        for circle in sight.circles() {
            for &row in &circle.rows {
                let row = row as usize;
                let (from, committed) = (sight.rows[row].path.start, sight.committed(row));
                // Before its last two tiles a row's slots are their own places.
                for (depth, word) in words[sight.rows[row].path.clone()].iter_mut().enumerate() {
                    *word |= place((committed + depth) % PAGE);
                }
                let own = before(sight, row, circle.tile);
                let starts = [own - last(sight, row, circle.tile)[0].len(), own];
                let tiles = [circle.tile.saturating_sub(1), circle.tile];
                for (i, staged) in last(sight, row, circle.tile).into_iter().enumerate() {
                    let taken = PAGE - free(sight, row, tiles[i]);
                    for (depth, staged) in (starts[i]..).zip(staged) {
                        let guest = circle.guests[i].iter().position(|guest| guest == staged);
                        words[from + depth] = staged | place(taken + guest.unwrap_or(0));
                    }
                }
            }
        }
        words
    }
}

/// A place in a tile, above a row of the step.
fn place(place: usize) -> u32 {
    (place as u32) << 24
}
