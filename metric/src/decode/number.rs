//! Decimal numbers from their text, exactly.

/// Why a number cannot be had exactly.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Inexact {
    NotANumber,
    /// It has more digits after the point than there is room for.
    Fraction,
    /// It has more digits than there is room for.
    Size,
}

/// The number that `text` (`-12.50`, `2e3`) names, times 10 to the power of `scale`.
///
/// # Errors
/// If the text is no number or the result is not a whole number that fits.
pub(crate) fn exact(text: &str, scale: i8) -> Result<i128, Inexact> {
    let (negative, unsigned) = match text.as_bytes().first() {
        Some(b'-') => (true, &text[1..]),
        Some(b'+') => (false, &text[1..]),
        _ => (false, text),
    };
    let (mantissa, exponent) = match unsigned.split_once(['e', 'E']) {
        Some((mantissa, exponent)) => (mantissa, parse_exponent(exponent)?),
        None => (unsigned, 0),
    };
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    if whole.is_empty() && fraction.is_empty() || !whole.bytes().chain(fraction.bytes()).all(|b| b.is_ascii_digit()) {
        return Err(Inexact::NotANumber);
    }
    let mut digits = 0_i128;
    // Zeros at the end are held back: they count only if something follows them or the scale asks for them.
    let mut zeros = 0_u32;
    for digit in whole.bytes().chain(fraction.bytes()) {
        if digit == b'0' {
            zeros += u32::from(digits != 0);
            continue;
        }
        digits = shift(digits, zeros + 1)?.checked_add(i128::from(digit - b'0')).ok_or(Inexact::Size)?;
        zeros = 0;
    }
    if digits == 0 {
        return Ok(0);
    }
    let places = i64::try_from(fraction.len()).map_err(|_| Inexact::Size)?;
    let power = i64::from(zeros) + exponent - places + i64::from(scale);
    let power = u32::try_from(power).map_err(|_| if power < 0 { Inexact::Fraction } else { Inexact::Size })?;
    let value = shift(digits, power)?;
    Ok(if negative { -value } else { value })
}

fn shift(digits: i128, power: u32) -> Result<i128, Inexact> {
    if digits == 0 {
        return Ok(0);
    }
    10_i128.checked_pow(power).and_then(|factor| digits.checked_mul(factor)).ok_or(Inexact::Size)
}

fn parse_exponent(text: &str) -> Result<i64, Inexact> {
    let digits = text.strip_prefix(['+', '-']).unwrap_or(text);
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return Err(Inexact::NotANumber);
    }
    // An exponent beyond all bounds is as good as a very large one: nothing but zero fits.
    let size = digits.parse::<i64>().unwrap_or(1 << 40).min(1 << 40);
    Ok(if text.starts_with('-') { -size } else { size })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_number_is_exact_or_refused() {
        assert_eq!(exact("2.0", 0), Ok(2));
        assert_eq!(exact("1.9", 0), Err(Inexact::Fraction));
        assert_eq!(exact("2e3", 0), Ok(2_000));
        assert_eq!(exact("2000e-3", 0), Ok(2));
        assert_eq!(exact("2.55", 3), Ok(2_550));
        assert_eq!(exact("-0.001", 3), Ok(-1));
        assert_eq!(exact("0.0010000000000000000000000000000000000000000000000000", 3), Ok(1));
        assert_eq!(exact("0.0001", 3), Err(Inexact::Fraction));
        assert_eq!(exact("0e99999999999999999999", 0), Ok(0));
        assert_eq!(exact("1e99999999999999999999", 0), Err(Inexact::Size));
        assert_eq!(exact("1e-99999999999999999999", 0), Err(Inexact::Fraction));
        for text in ["", "-", ".", "e5", "1e", "1x", "NaN", "inf", "1.2.3", "--1", "٣"] {
            assert_eq!(exact(text, 0), Err(Inexact::NotANumber), "{text}");
        }
    }

    proptest! {
        #[test]
        fn a_written_decimal_comes_back(value in any::<i64>(), scale in 0_i8..18) {
            let unsigned = format!("{:019}", value.unsigned_abs());
            let (whole, fraction) = unsigned.split_at(unsigned.len() - usize::from(scale.unsigned_abs()));
            let text = format!("{}{whole}.{fraction}", if value < 0 { "-" } else { "" });
            prop_assert_eq!(exact(&text, scale), Ok(i128::from(value)));
        }

        #[test]
        fn no_text_makes_it_panic(text in "[-+0-9.eE]{0,60}|\\PC{0,20}", scale in any::<i8>()) {
            let _ = exact(&text, scale);
        }
    }
}
