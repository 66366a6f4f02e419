//! Sums: exact for integers and decimals, compensated for floats.

use serde::{Deserialize, Serialize};

use super::{Cell, Kind, StateError};

/// 10^38: a decimal sum must stay below it.
const DECIMAL_LIMIT: u128 = 10_u128.pow(38);

/// An exact sum of integers or unscaled decimals. It is kept wider than what may be answered (`high`·2^128 + `low`), so
/// that whether it overflows depends on the total only, never on the order of rows.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Sum {
    /// Number of values; nulls are none.
    pub(crate) n: u64,
    low: i128,
    high: i64,
}

impl Sum {
    pub(crate) fn add(&mut self, value: i128) {
        self.n = self.n.saturating_add(1);
        self.plus(value);
    }

    fn plus(&mut self, value: i128) {
        let (low, overflowed) = self.low.overflowing_add(value);
        self.low = low;
        if overflowed {
            self.high = self.high.wrapping_add(if value < 0 { -1 } else { 1 });
        }
    }

    /// The total, if it fits an i128 or, for decimals, 38 digits.
    pub(crate) fn total(&self, decimal: bool) -> Result<i128, StateError> {
        if self.high != 0 || (decimal && self.low.unsigned_abs() >= DECIMAL_LIMIT) {
            return Err(StateError::Overflow);
        }
        Ok(self.low)
    }
}

impl Cell for Sum {
    fn empty(_: &Kind) -> Self {
        Self::default()
    }

    fn merge(&mut self, other: &Self) {
        self.n = self.n.saturating_add(other.n);
        self.high = self.high.wrapping_add(other.high);
        self.plus(other.low);
    }
}

/// A float sum with the rounding errors kept beside it (Neumaier), so that layers which add in different orders agree
/// within 1e-9.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct FloatSum {
    pub(crate) n: u64,
    sum: f64,
    rest: f64,
}

impl FloatSum {
    pub(crate) fn add(&mut self, value: f64) {
        self.n = self.n.saturating_add(1);
        self.plus(value);
    }

    fn plus(&mut self, value: f64) {
        let sum = self.sum + value;
        self.rest += if self.sum.abs() >= value.abs() { (self.sum - sum) + value } else { (value - sum) + self.sum };
        self.sum = sum;
    }

    pub(crate) fn total(&self) -> Result<f64, StateError> {
        let total = self.sum + self.rest;
        // `+ 0.0` makes a negative zero positive.
        if total.is_finite() { Ok(total + 0.0) } else { Err(StateError::Overflow) }
    }
}

impl Cell for FloatSum {
    fn empty(_: &Kind) -> Self {
        Self::default()
    }

    fn merge(&mut self, other: &Self) {
        self.n = self.n.saturating_add(other.n);
        self.plus(other.sum);
        self.rest += other.rest;
    }
}

/// `sum / n` rounded to the nearest float.
pub(crate) fn quotient(sum: i128, n: u64) -> f64 {
    const EXACT: u128 = 1 << 53;
    let (magnitude, divisor) = (sum.unsigned_abs(), u128::from(n));
    let value = if magnitude < EXACT {
        magnitude as f64 / n as f64
    } else {
        // Integer part, 64 bits of fraction, and a last bit that says whether something is left: enough to round once.
        let (whole, rest) = (magnitude / divisor, magnitude % divisor);
        if whole >= 1 << 63 {
            (whole | u128::from(rest != 0)) as f64
        } else {
            let (fraction, left) = ((rest << 64) / divisor, (rest << 64) % divisor);
            ((whole << 64) | fraction | u128::from(left != 0)) as f64 / 2_f64.powi(64)
        }
    };
    if sum < 0 { -value } else { value }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_average_of_integers_is_rounded_once() {
        assert_eq!(quotient(10, 4), 2.5);
        assert_eq!(quotient(-1, 3), -1.0 / 3.0);
        // 2^53 + 1 has no float of its own; half of it does not either, and the tie goes to even.
        assert_eq!(quotient((1 << 53) + 1, 1), 9_007_199_254_740_992.0);
        assert_eq!(quotient(9 * ((1 << 60) + 1), 9), ((1_i64 << 60) + 1) as f64);
        assert_eq!(quotient(i128::MAX, 1), i128::MAX as f64);
        assert_eq!(quotient(3 * 100_000_000_000_000_001, 3), 100_000_000_000_000_001_i64 as f64);
    }

    #[test]
    fn an_exact_sum_overflows_by_its_total_only() {
        let mut there_and_back = Sum::default();
        for value in [i128::MAX, i128::MAX, i128::MIN + 1, i128::MIN + 1, 7] {
            there_and_back.add(value);
        }
        assert_eq!(there_and_back.total(false), Ok(7));
        let mut decimal = Sum::default();
        decimal.add(DECIMAL_LIMIT as i128 - 1);
        assert!(decimal.total(true).is_ok());
        decimal.add(1);
        assert_eq!(decimal.total(true), Err(StateError::Overflow));
    }

    #[test]
    fn a_float_sum_keeps_what_rounding_drops() {
        let mut sum = FloatSum::default();
        for value in [1e16, 1.0, -1e16] {
            sum.add(value);
        }
        assert_eq!(sum.total(), Ok(1.0));
        sum.add(f64::MAX);
        sum.add(f64::MAX);
        assert_eq!(sum.total(), Err(StateError::Overflow));
    }
}
