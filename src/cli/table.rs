//! Tables without borders, in one style for all commands. It knows nothing about what it shows.

use std::io::{self, Write};
use std::ops::Range;

use comfy_table::presets::NOTHING;
use comfy_table::{CellAlignment, ContentArrangement, Table};

/// The layout of a table. Widths are in columns of the terminal.
pub(super) struct Layout {
    /// Space before each line.
    pub indent: usize,
    /// Space between columns.
    pub gap: u16,
    /// The columns that are aligned to the right: numbers.
    pub numbers: Range<usize>,
    /// Maximum width of a line; longer cells are wrapped within their column. `None`: nothing is wrapped.
    pub max_width: Option<u16>,
}

/// Two columns of indentation and gap, everything aligned to the left, nothing wrapped.
impl Default for Layout {
    fn default() -> Self {
        Layout { indent: 2, gap: 2, numbers: 0..0, max_width: None }
    }
}

/// An empty table with this header.
pub(super) fn new<'h>(header: impl IntoIterator<Item = &'h str>) -> Table {
    let mut table = Table::new();
    table.load_style(NOTHING).set_header(header.into_iter().collect::<Vec<_>>());
    table
}

/// Writes rows of text below a header, in the default layout.
pub(super) fn write_rows<const N: usize>(
    out: &mut dyn Write,
    header: [&str; N],
    rows: impl IntoIterator<Item = [String; N]>,
) -> io::Result<()> {
    let mut table = new(header);
    table.add_rows(rows);
    write(table, &Layout::default(), out)
}

/// Writes a table, without spaces at the ends of lines.
pub(super) fn write(mut table: Table, layout: &Layout, out: &mut dyn Write) -> io::Result<()> {
    let last = table.column_count().saturating_sub(1);
    for (index, column) in table.column_iter_mut().enumerate() {
        column.set_padding((0, if index == last { 0 } else { layout.gap }));
        if layout.numbers.contains(&index) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    if let Some(width) = layout.max_width {
        table.set_content_arrangement(ContentArrangement::Dynamic).set_width(width);
    }
    for line in table.lines() {
        writeln!(out, "{:indent$}{}", "", line.trim_end(), indent = layout.indent)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up_whatever_the_width_of_their_characters() {
        let mut table = new(["NAME", "PIECES", "NOTE"]);
        table.add_row(["产品", "7", "x"]).add_row(["Café", "12345678", ""]);
        let mut out = Vec::new();
        write(table, &Layout { numbers: 1..2, ..Layout::default() }, &mut out).unwrap();
        // Each of the first row's two characters takes two columns.
        let lines = ["  NAME    PIECES  NOTE", "  产品         7  x", "  Café  12345678"];
        assert_eq!(String::from_utf8(out).unwrap().lines().collect::<Vec<_>>(), lines);
    }
}
