//! Tables that fit a terminal.
//!
//! Owns: the widths. Never wraps: a line that does not fit is cut at its widest cells, for a table is
//! read down its columns.

/// Rows of cells under their heads.
#[derive(Clone, Debug, Default)]
pub struct Table {
    rows: Vec<Vec<String>>,
    has_head: bool,
}

impl Table {
    /// A table under these heads.
    pub fn under(heads: &[&str]) -> Table {
        let head = heads.iter().map(|head| (*head).to_owned()).collect();
        Table {
            rows: vec![head],
            has_head: true,
        }
    }

    /// A table without heads.
    pub fn bare() -> Table {
        Table::default()
    }

    /// Adds a row. Control characters in a cell become `?`: a name must not move the cursor.
    pub fn row(&mut self, cells: impl IntoIterator<Item = impl Into<String>>) {
        let clean = |cell: String| {
            cell.chars()
                .map(|c| if c.is_control() { '?' } else { c })
                .collect()
        };
        self.rows
            .push(cells.into_iter().map(|cell| clean(cell.into())).collect());
    }

    /// Whether there is a row under the heads.
    pub fn is_empty(&self) -> bool {
        self.rows.len() == usize::from(self.has_head)
    }

    /// As text, no line longer than `columns` unless its cells cannot be cut any further.
    pub fn fit(&self, columns: usize) -> String {
        let widths = self.widths(columns);
        let mut text = String::new();
        for row in &self.rows {
            let mut line = String::new();
            for (cell, width) in row.iter().zip(&widths) {
                let cell = cut(cell, *width);
                line.push_str(&cell);
                let missing = width - cell.chars().count();
                line.extend(std::iter::repeat_n(' ', missing + GAP.len()));
            }
            text.push_str(line.trim_end());
            text.push('\n');
        }
        text
    }

    fn widths(&self, columns: usize) -> Vec<usize> {
        let mut widths: Vec<usize> = Vec::new();
        for row in &self.rows {
            widths.resize(widths.len().max(row.len()), 0);
            for (cell, width) in row.iter().zip(&mut widths) {
                *width = (*width).max(cell.chars().count());
            }
        }
        let gaps = GAP.len() * widths.len().saturating_sub(1);
        let mut over = (widths.iter().sum::<usize>() + gaps).saturating_sub(columns);
        while over > 0 {
            // The first of the widest: in a row, names come before what is said of them.
            let widest = widths.iter().copied().max().unwrap_or(0);
            let Some(width) = widths.iter_mut().find(|width| **width == widest) else {
                break;
            };
            if *width <= CELL_MIN {
                break;
            }
            *width -= 1;
            over -= 1;
        }
        widths
    }
}

/// The text, cut to `width` characters, the last of them an ellipsis where some are missing.
pub fn cut(text: &str, width: usize) -> String {
    if text.chars().count() <= width {
        return text.to_owned();
    }
    let mut kept: String = text.chars().take(width.saturating_sub(1)).collect();
    if width > 0 {
        kept.push('…');
    }
    kept
}

/// Between two columns.
const GAP: &str = "  ";

/// No cell is cut below this: less of a name tells nothing.
const CELL_MIN: usize = 6;

#[cfg(test)]
mod tests {
    use super::*;

    fn check(rows: &[&[&str]], columns: usize, expected: &[&str]) {
        let mut table = Table::bare();
        for row in rows {
            table.row(row.iter().copied());
        }
        let text = table.fit(columns);
        assert_eq!(text.lines().collect::<Vec<_>>(), expected);
    }

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        check(
            &[&["a", "state"], &["longer", "x"]],
            80,
            &["a       state", "longer  x"],
        );
        check(&[], 80, &[]);
        check(&[&["one"]], 80, &["one"]);
    }

    #[test]
    fn the_widest_cells_are_cut_until_the_line_fits() {
        check(
            &[&["t1/counter/a-long-name", "serving", "a"]],
            24,
            &["t1/counter/…  serving  a"],
        );
        check(
            &[&["0123456789", "0123456789"]],
            18,
            &["0123456…  0123456…"],
        );
    }

    #[test]
    fn what_cannot_be_cut_further_stays() {
        check(&[&["abcdef", "ghijkl"]], 3, &["abcdef  ghijkl"]);
        check(&[&["abcdefgh", "ghijklmn"]], 3, &["abcde…  ghijk…"]);
    }

    #[test]
    fn a_name_cannot_move_the_cursor() {
        check(&[&["a\x1b[2J\nb", "c"]], 80, &["a?[2J?b  c"]);
    }

    #[test]
    fn text_is_cut_at_characters() {
        for (text, width, expected) in [
            ("größer", 4, "grö…"),
            ("größer", 6, "größer"),
            ("ab", 1, "…"),
            ("ab", 0, ""),
        ] {
            assert_eq!(cut(text, width), expected);
        }
    }
}
