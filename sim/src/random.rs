//! A generator whose sequence depends on the seed only (splitmix64).

pub(crate) fn mix(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[derive(Clone, Debug)]
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        let mut state = seed ^ 0x1a3b_5c7d_9e0f_2468;
        mix(&mut state);
        Self(state)
    }

    pub(crate) fn next(&mut self) -> u64 {
        mix(&mut self.0)
    }

    /// Less than `bound`.
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound.max(1)
    }

    /// From `low` to below `high`.
    pub(crate) fn within(&mut self, low: i64, high: i64) -> i64 {
        low + self.below(high.saturating_sub(low).max(1).unsigned_abs()) as i64
    }

    /// True so many times in a thousand.
    pub(crate) fn permille(&mut self, so_many: u64) -> bool {
        self.below(1000) < so_many
    }

    pub(crate) fn pick<'a, T>(&mut self, of: &'a [T]) -> &'a T {
        &of[self.below(of.len() as u64) as usize]
    }
}
