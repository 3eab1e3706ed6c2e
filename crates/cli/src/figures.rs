//! Numbers as people read them: three digits that matter, and a unit.

use std::time::Duration;

/// `417 ns`, `1.23 ms`, `45.0 s`, `3 h 12 min`.
pub(crate) fn duration(d: Duration) -> String {
    let ns = d.as_nanos();
    match ns {
        0..1_000 => format!("{ns} ns"),
        1_000..1_000_000 => with_unit(ns as f64 / 1e3, "µs"),
        1_000_000..1_000_000_000 => with_unit(ns as f64 / 1e6, "ms"),
        1_000_000_000..120_000_000_000 => with_unit(ns as f64 / 1e9, "s"),
        _ => {
            let minutes = d.as_secs() / 60;
            match minutes {
                0..120 => format!("{minutes} min"),
                120..2_880 => format!("{} h {} min", minutes / 60, minutes % 60),
                _ => format!("{} days", minutes / 1_440),
            }
        }
    }
}

/// `512 B`, `1.50 MiB`.
pub(crate) fn bytes(n: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut value = n as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 {
        format!("{n} B")
    } else {
        with_unit(value, UNITS[unit])
    }
}

/// `1 234 567`.
pub(crate) fn count(n: u64) -> String {
    let digits = n.to_string();
    let mut grouped = String::with_capacity(digits.len() + digits.len() / 3);
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            grouped.push(' ');
        }
        grouped.push(digit);
    }
    grouped
}

fn with_unit(value: f64, unit: &str) -> String {
    let places = if value < 10.0 {
        2
    } else if value < 100.0 {
        1
    } else {
        0
    };
    format!("{value:.places$} {unit}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_keep_three_digits() {
        for (ns, text) in [
            (0, "0 ns"),
            (999, "999 ns"),
            (1_234, "1.23 µs"),
            (45_600_000, "45.6 ms"),
            (119_000_000_000, "119 s"),
            (600_000_000_000, "10 min"),
            (11_520_000_000_000, "3 h 12 min"),
            (400_000_000_000_000, "4 days"),
        ] {
            assert_eq!(duration(Duration::from_nanos(ns)), text);
        }
    }

    #[test]
    fn bytes_take_the_largest_unit_that_fits() {
        assert_eq!(bytes(1023), "1023 B");
        assert_eq!(bytes(1536), "1.50 KiB");
        assert_eq!(bytes(u64::MAX), "16777216 TiB");
    }

    #[test]
    fn counts_are_grouped_by_three() {
        assert_eq!(count(0), "0");
        assert_eq!(count(999), "999");
        assert_eq!(count(1_000), "1 000");
        assert_eq!(count(1_234_567), "1 234 567");
    }
}
