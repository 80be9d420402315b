//! Times as traces write them.

/// Reads an RFC 3339 time, `2021-04-19T06:06:58.219Z` or with an offset, as seconds since 1970, fractions cut off.
///
/// `None` when the text is no such time. The separator may be `T`, `t` or a space; a missing offset means UTC; a leap
/// second counts as the second after it.
pub(super) fn seconds_since_1970(text: &str) -> Option<i64> {
    let (date, rest) = text.split_at_checked(10)?;
    let (year, month, day) = (number(date, 0, 4)?, number(date, 5, 2)?, number(date, 8, 2)?);
    let (separator, rest) = rest.split_at_checked(1)?;
    let (clock, rest) = rest.split_at_checked(8)?;
    let (hour, minute, second) = (number(clock, 0, 2)?, number(clock, 3, 2)?, number(clock, 6, 2)?);
    let marks = [(date, 4, b'-'), (date, 7, b'-'), (clock, 2, b':'), (clock, 5, b':')];
    let shaped = marks.iter().all(|&(part, at, mark)| part.as_bytes()[at] == mark);
    let fits = (1..=12).contains(&month)
        && (1..=days_of(year, month)).contains(&day)
        && hour < 24
        && minute < 60
        && second <= 60;
    if !shaped || !fits || !matches!(separator, "T" | "t" | " ") {
        return None;
    }
    let offset = offset_seconds(without_fraction(rest)?)?;
    Some(days_since_1970(year, month, day) * 86_400 + hour * 3600 + minute * 60 + second - offset)
}

/// The number of exactly `digits` decimal digits at byte `from`.
fn number(text: &str, from: usize, digits: usize) -> Option<i64> {
    let part = text.get(from..from + digits)?;
    if part.bytes().all(|byte| byte.is_ascii_digit()) { part.parse().ok() } else { None }
}

/// What follows `.` and its digits, or the text itself when there is no fraction.
fn without_fraction(text: &str) -> Option<&str> {
    match text.strip_prefix('.') {
        None => Some(text),
        Some(fraction) => {
            let rest = fraction.trim_start_matches(|c: char| c.is_ascii_digit());
            (rest.len() < fraction.len()).then_some(rest)
        }
    }
}

fn offset_seconds(text: &str) -> Option<i64> {
    if matches!(text, "" | "Z" | "z") {
        return Some(0);
    }
    let sign = match text.as_bytes().first()? {
        b'+' => 1,
        b'-' => -1,
        _ => return None,
    };
    let (hour, minute) = (number(text, 1, 2)?, number(text, 4, 2)?);
    let shaped = text.len() == 6 && text.as_bytes()[3] == b':' && hour < 24 && minute < 60;
    shaped.then_some(sign * (hour * 3600 + minute * 60))
}

fn is_leap(year: i64) -> bool {
    year % 4 == 0 && (year % 100 != 0 || year % 400 == 0)
}

fn days_of(year: i64, month: i64) -> i64 {
    match month {
        2 if is_leap(year) => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

/// Days from 1970-01-01, counted in years that begin on 1 March so that the leap day comes last.
fn days_since_1970(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    365 * year + year.div_euclid(4) - year.div_euclid(100) + year.div_euclid(400) + day_of_year - 719_468
}

#[cfg(test)]
mod tests {
    use super::seconds_since_1970;

    #[test]
    fn times_are_read_with_fractions_offsets_and_leap_days() {
        for (text, seconds) in [
            ("1970-01-01T00:00:00Z", 0),
            ("1970-01-01T00:00:00+00:00", 0),
            ("2021-04-19T06:06:58.219Z", 1_618_812_418),
            ("2020-09-28T02:47:49.000Z", 1_601_261_269),
            ("2021-04-19t08:06:58+02:00", 1_618_812_418),
            ("2021-04-19 00:36:58.9-05:30", 1_618_812_418),
            ("2021-04-19T06:06:58", 1_618_812_418),
            ("2000-02-29T00:00:00Z", 951_782_400),
            ("2100-03-01T00:00:00Z", 4_107_542_400),
            ("1969-12-31T23:59:59Z", -1),
            ("0000-01-01T00:00:00Z", -62_167_219_200),
            ("9999-12-31T23:59:59Z", 253_402_300_799),
            ("2016-12-31T23:59:60Z", 1_483_228_800),
        ] {
            assert_eq!(seconds_since_1970(text), Some(seconds), "{text}");
        }
    }

    #[test]
    fn what_is_no_time_is_none() {
        for text in [
            "",
            "yesterday",
            "2021-04-19",
            "2021-13-19T06:06:58Z",
            "2021-02-29T06:06:58Z",
            "2021-04-31T06:06:58Z",
            "2021-04-19T24:06:58Z",
            "2021-04-19T06:60:58Z",
            "2021-04-19T06:06:61Z",
            "2021-04-19T06:06:58.Z",
            "2021-04-19T06:06:58ZZ",
            "2021-04-19T06:06:58+2:00",
            "2021-04-19T06:06:58+02:0a",
            "2021/04/19T06:06:58Z",
            "2021-04-19T06:06:5éZ",
            "+021-04-19T06:06:58Z",
            "2021-04-1éT06:06:58Z",
        ] {
            assert_eq!(seconds_since_1970(text), None, "{text}");
        }
    }
}
