//! Numbers of sixteen bits as a card's tensor cores take them: pieces of eight rows or outputs and 64 inputs (round.cu).

/// Inputs of a piece.
pub(crate) const STEP: usize = 64;

/// Rows or outputs of a piece.
pub(crate) const ROWS: usize = 8;

/// Bytes of a piece.
pub(crate) const PIECE: usize = STEP * ROWS * 2;

/// Bytes of a row that stand together in a piece.
const HALF_BYTES: usize = PIECE / 2 / ROWS;

/// Bytes of eight rows of `k` inputs.
pub(crate) fn eight_bytes(k: usize) -> usize {
    k.div_ceil(STEP) * PIECE
}

/// Puts a row's bytes into its eight's pieces, at place `at` of eight.
pub(crate) fn put_row(pieces: &mut [u8], at: usize, row: &[u8]) {
    for (half, inputs) in row.chunks(HALF_BYTES).enumerate() {
        pieces[place(half, at)..][..inputs.len()].copy_from_slice(inputs);
    }
}

/// The bytes of the row at place `at` of eight, `len` of them.
pub(crate) fn row(pieces: &[u8], at: usize, len: usize) -> Vec<u8> {
    let halves = (0..len.div_ceil(HALF_BYTES)).flat_map(|half| &pieces[place(half, at)..][..HALF_BYTES]);
    halves.copied().take(len).collect()
}

/// Where half piece `half` of the row at `at` of eight begins among their pieces.
fn place(half: usize, at: usize) -> usize {
    (half * ROWS + at) * HALF_BYTES
}
