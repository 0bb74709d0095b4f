//! Numbers of JSON as Nix writes them.
//!
//! Nix parses structured attributes and writes them again, with nlohmann's JSON library: whole numbers of up to 64 bits
//! stay what they are, all others become floating-point numbers of 64 bits, whose digits come from an algorithm of their
//! own (Grisu2: Loitsch, "Printing floating-point numbers quickly and accurately with integers", PLDI 2010). It
//! gives the shortest digits for nearly all numbers and a few too many for the rest, so that the language's own printing
//! would be right but for one number in a thousand.

use std::sync::LazyLock;

/// A number of JSON.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Number {
    Signed(i64),
    Unsigned(u64),
    Float(f64),
}

impl Number {
    /// The value of the text of a number. `None` if it is larger than any floating-point number, which Nix refuses.
    pub fn parse(text: &str) -> Option<Self> {
        if !text.contains(['.', 'e', 'E']) {
            if text.starts_with('-') {
                if let Ok(number) = text.parse() {
                    return Some(Self::Signed(number));
                }
            } else if let Ok(number) = text.parse() {
                return Some(Self::Unsigned(number));
            }
        }
        text.parse::<f64>().ok().filter(|number| number.is_finite()).map(Self::Float)
    }

    /// As it stands in `.attrs.json`.
    pub fn json(self) -> String {
        match self {
            Self::Signed(number) => number.to_string(),
            Self::Unsigned(number) => number.to_string(),
            Self::Float(number) => float(number),
        }
    }

    /// As it stands in `.attrs.sh`: whole numbers do, as C++ makes an `int` of them, and others do not. Whether a number is
    /// whole Nix asks of a `float`, to which many are that are none.
    pub fn shell(self) -> Option<String> {
        let (single, int) = match self {
            Self::Signed(number) => (number as f32, number as i32),
            Self::Unsigned(number) => (number as f32, number as i32),
            Self::Float(number) => (number as f32, int_of(number)),
        };
        (single.ceil() == single).then(|| int.to_string())
    }
}

/// The processor's conversion of a number that is no `int`: C++ does not define it, so Nix's answer is that of its machine.
fn int_of(number: f64) -> i32 {
    match cfg!(target_arch = "x86_64") && !(-2_147_483_649.0 < number && number < 2_147_483_648.0) {
        true => i32::MIN,
        false => number as i32,
    }
}

/// Digits with a point, or with an exponent where that would take many zeros.
fn float(number: f64) -> String {
    let sign = if number.is_sign_negative() { "-" } else { "" };
    let number = number.abs();
    if number == 0.0 {
        return format!("{sign}0.0");
    }
    let (digits, exponent) = grisu2(number);
    let length = digits.len() as i32;
    // Where the point is, counted from the first digit.
    let point = length + exponent;
    let zeros = |n: i32| "0".repeat(n.unsigned_abs() as usize);
    // Up to as many digits as 64 bits always keep.
    const MOST: i32 = f64::DIGITS as i32;
    if length <= point && point <= MOST {
        return format!("{sign}{digits}{}.0", zeros(point - length));
    }
    if 0 < point && point <= MOST {
        let (whole, rest) = digits.split_at(point as usize);
        return format!("{sign}{whole}.{rest}");
    }
    if -4 < point && point <= 0 {
        return format!("{sign}0.{}{digits}", zeros(point));
    }
    let (first, rest) = digits.split_at(1);
    let dot = if rest.is_empty() { "" } else { "." };
    let exponent = point - 1;
    let e = if exponent < 0 { '-' } else { '+' };
    format!("{sign}{first}{dot}{rest}e{e}{:02}", exponent.unsigned_abs())
}

/// `f` times 2 to the power of `e`.
#[derive(Debug, Clone, Copy)]
struct Wide {
    f: u64,
    e: i32,
}

impl Wide {
    /// Rounded to 64 bits, halves up.
    fn times(self, other: Wide) -> Wide {
        let product = u128::from(self.f) * u128::from(other.f);
        Wide { f: ((product + (1 << 63)) >> 64) as u64, e: self.e + other.e + 64 }
    }

    fn normalized(self) -> Wide {
        let shift = self.f.leading_zeros();
        Wide { f: self.f << shift, e: self.e - shift as i32 }
    }

    fn at_exponent(self, e: i32) -> Wide {
        Wide { f: self.f << (self.e - e), e }
    }
}

/// The exponents that a scaled number may have, so that its whole part fits 32 bits.
const ALPHA: i32 = -60;

/// Powers of ten between which the others are close enough, rounded to 64 bits: every eighth from here to there.
const FIRST_POWER: i32 = -300;
const LAST_POWER: i32 = 324;
const STEP: i32 = 8;

static POWERS: LazyLock<Vec<Wide>> =
    LazyLock::new(|| (FIRST_POWER..=LAST_POWER).step_by(STEP as usize).map(power_of_ten).collect());

/// Ten to the power of `k`, rounded to 64 bits, by long arithmetic.
fn power_of_ten(k: i32) -> Wide {
    // Bits behind the point that are kept of negative powers: more than their zeros and 64.
    const BITS: usize = 1216;
    // Little-endian words of 32 bits.
    let mut words: Vec<u32> = vec![1];
    let mut e = 0;
    if k >= 0 {
        for _ in 0..k {
            let mut carry = 0_u64;
            for word in &mut words {
                let product = u64::from(*word) * 10 + carry;
                *word = product as u32;
                carry = product >> 32;
            }
            if carry > 0 {
                words.push(carry as u32);
            }
        }
    } else {
        words = vec![0; BITS / 32];
        words.push(1);
        e = -(BITS as i32);
        for _ in 0..-k {
            let mut rest = 0_u64;
            for word in words.iter_mut().rev() {
                let part = rest << 32 | u64::from(*word);
                *word = (part / 10) as u32;
                rest = part % 10;
            }
        }
    }
    while words.last() == Some(&0) {
        words.pop();
    }
    let bits = words.len() * 32 - words.last().map_or(0, |word| word.leading_zeros() as usize);
    let bit = |at: usize| u64::from(words[at / 32] >> (at % 32) & 1);
    if bits <= 64 {
        let f = (0..bits).rev().fold(0, |f, at| f << 1 | bit(at));
        return Wide { f, e }.normalized();
    }
    let f = (bits - 64..bits).rev().fold(0, |f, at| f << 1 | bit(at));
    // None of these is so close to the next power of two that rounding would carry over.
    Wide { f: f + bit(bits - 65), e: e + (bits - 64) as i32 }
}

/// The digits of a finite number above zero, and the power of ten that the last of them counts.
fn grisu2(number: f64) -> (String, i32) {
    const HIDDEN: u64 = 1 << 52;
    let (bits, fraction) = (number.to_bits(), number.to_bits() & (HIDDEN - 1));
    let biased = (bits >> 52) as i32;
    let v = match biased {
        0 => Wide { f: fraction, e: 1 - 1075 },
        _ => Wide { f: fraction + HIDDEN, e: biased - 1075 },
    };
    // Half way to the next number on each side; the one below is closer at powers of two.
    let plus = Wide { f: 2 * v.f + 1, e: v.e - 1 };
    let minus = match fraction == 0 && biased > 1 {
        true => Wide { f: 4 * v.f - 1, e: v.e - 2 },
        false => Wide { f: 2 * v.f - 1, e: v.e - 1 },
    };
    let plus = plus.normalized();
    let (minus, v) = (minus.at_exponent(plus.e), v.normalized());

    // The first power of the table that brings the exponent to at least ALPHA.
    let wanted = ALPHA - plus.e - 1;
    let k = (wanted * 78_913) / (1 << 18) + i32::from(wanted > 0);
    let index = (-FIRST_POWER + k + (STEP - 1)) / STEP;
    let power = POWERS[index as usize];
    let exponent = -(FIRST_POWER + index * STEP);
    let (w, low, high) = (v.times(power), minus.times(power), plus.times(power));
    // Each product may be off by one in the last place.
    digits(Wide { f: low.f + 1, ..low }, w, Wide { f: high.f - 1, ..high }, exponent)
}

/// As few digits as tell a number between `low` and `high`, close to `w`.
fn digits(low: Wide, w: Wide, high: Wide, mut exponent: i32) -> (String, i32) {
    let mut buffer = Vec::new();
    let mut delta = high.f - low.f;
    let mut distance = high.f - w.f;
    let shift = -high.e as u32;
    let one = 1_u64 << shift;
    let mut whole = (high.f >> shift) as u32;
    let mut fraction = high.f & (one - 1);
    let mut n = whole.checked_ilog10().unwrap_or(0) as i32 + 1;
    let mut power = 10_u32.pow(n as u32 - 1);
    while n > 0 {
        buffer.push(b'0' + (whole / power) as u8);
        whole %= power;
        n -= 1;
        let rest = (u64::from(whole) << shift) + fraction;
        if rest <= delta {
            exponent += n;
            round(&mut buffer, distance, delta, rest, u64::from(power) << shift);
            return (text(buffer), exponent);
        }
        power /= 10;
    }
    let mut m = 0;
    loop {
        fraction *= 10;
        buffer.push(b'0' + (fraction >> shift) as u8);
        fraction &= one - 1;
        m += 1;
        delta *= 10;
        distance *= 10;
        if fraction <= delta {
            break;
        }
    }
    round(&mut buffer, distance, delta, fraction, one);
    (text(buffer), exponent - m)
}

/// Takes the last digit down while that comes closer to the number.
fn round(buffer: &mut [u8], distance: u64, delta: u64, mut rest: u64, unit: u64) {
    let Some(last) = buffer.last_mut() else { return };
    while rest < distance
        && delta - rest >= unit
        && (rest + unit < distance || distance - rest > rest + unit - distance)
    {
        *last -= 1;
        rest += unit;
    }
}

fn text(digits: Vec<u8>) -> String {
    digits.into_iter().map(char::from).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn numbers_are_written_as_nix_writes_them() {
        // What Nix gives, held against it by `tests/tests/clients/strings.rs`.
        for (text, json, shell) in [
            ("0", "0", Some("0")),
            ("-0", "0", Some("0")),
            ("0.0", "0.0", Some("0")),
            ("-0.0", "-0.0", Some("0")),
            ("1.0", "1.0", Some("1")),
            ("1.50", "1.5", None),
            ("1e2", "100.0", Some("100")),
            ("100000000000000", "100000000000000", Some("276447232")),
            ("1e14", "100000000000000.0", Some("-2147483648")),
            ("1e15", "1e+15", Some("-2147483648")),
            ("123456789012345678", "123456789012345678", Some("-1506741426")),
            ("1e-4", "0.0001", None),
            ("1e-5", "1e-05", None),
            ("1.5e300", "1.5e+300", Some("-2147483648")),
            ("18446744073709551615", "18446744073709551615", Some("-1")),
            ("18446744073709551616", "1.8446744073709552e+19", Some("-2147483648")),
            ("-9223372036854775808", "-9223372036854775808", Some("0")),
            ("-9223372036854775809", "-9.223372036854776e+18", Some("-2147483648")),
            ("16777217.5", "16777217.5", Some("16777217")),
            ("5e-324", "5e-324", Some("0")),
            ("1e-400", "0.0", Some("0")),
        ] {
            let number = Number::parse(text).expect("a number");
            assert_eq!(number.json(), json, "{text}");
            assert_eq!(number.shell().as_deref(), shell, "{text}");
        }
        assert_eq!(Number::parse("1e400"), None);
    }

    proptest! {
        #[test]
        fn what_is_written_is_the_same_number(bits: u64) {
            let number = f64::from_bits(bits);
            if number.is_finite() {
                let written = float(number);
                prop_assert_eq!(written.parse::<f64>().expect("a number").to_bits(), bits, "{}", written);
                let shortest = format!("{number:e}").bytes().filter(u8::is_ascii_digit).count();
                prop_assert!(written.len() <= shortest + 22, "{written}");
            }
        }
    }
}
