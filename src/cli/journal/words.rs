//! Numbers and times as people read them.

use std::time::Duration;

/// `512 B`, `3.4 KiB`, `8.0 GiB`.
pub fn size(bytes: u64) -> String {
    const UNITS: [&str; 4] = ["KiB", "MiB", "GiB", "TiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let mut size = bytes as f64 / 1024.0;
    let mut unit = 0;
    while size >= 1024.0 && unit + 1 < UNITS.len() {
        size /= 1024.0;
        unit += 1;
    }
    format!("{size:.1} {}", UNITS[unit])
}

/// The two largest units: `4 ms`, `12 s`, `3 min 2 s`, `5 h 10 min`, `3 d 4 h`.
pub fn duration(duration: Duration) -> String {
    let seconds = duration.as_secs();
    let two = |large: u64, small: u64, names: [&str; 2]| match small {
        0 => format!("{large} {}", names[0]),
        small => format!("{large} {} {small} {}", names[0], names[1]),
    };
    match seconds {
        0 => format!("{} ms", duration.as_millis()),
        1..60 => format!("{seconds} s"),
        60..3_600 => two(seconds / 60, seconds % 60, ["min", "s"]),
        3_600..86_400 => two(seconds / 3_600, seconds % 3_600 / 60, ["h", "min"]),
        _ => two(seconds / 86_400, seconds % 86_400 / 3_600, ["d", "h"]),
    }
}

/// `1 event`, `2 events`.
pub fn events(count: u64) -> String {
    match count {
        1 => "1 event".to_owned(),
        count => format!("{count} events"),
    }
}

/// Columns of one width each, two spaces between; the first to the left, numbers in the others to the right. No space at a line's end.
pub fn table(rows: &[Vec<String>], indent: &str) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut text = String::new();
    for row in rows {
        let mut line = indent.to_owned();
        for (column, cell) in row.iter().enumerate() {
            let (width, gap) = (widths[column], if column == 0 { "" } else { "  " });
            let number = cell.bytes().all(|b| b.is_ascii_digit()) && column > 0;
            line += &if number { format!("{gap}{cell:>width$}") } else { format!("{gap}{cell:<width$}") };
        }
        text += line.trim_end();
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_written_for_people() {
        assert_eq!([size(0), size(1023), size(1536), size(8 << 30)], ["0 B", "1023 B", "1.5 KiB", "8.0 GiB"]);
        for (seconds, text) in [
            (0.004, "4 ms"),
            (59.9, "59 s"),
            (60.0, "1 min"),
            (182.0, "3 min 2 s"),
            (18_600.0, "5 h 10 min"),
            (273_600.0, "3 d 4 h"),
        ] {
            assert_eq!(duration(Duration::from_secs_f64(seconds)), text);
        }
        assert_eq!(
            table(&[vec!["a".into(), "n".into()], vec!["long".into(), "12".into()]], " "),
            " a     n\n long  12\n"
        );
    }
}
