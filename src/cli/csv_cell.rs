//! Cells of CSV with text that others sent, for spreadsheets.

use crate::escape::escaped;

/// A cell with text that others sent: escaped, and never a formula. Spreadsheets take a tab or a line break before a formula
/// for nothing; both are escaped.
pub(super) fn csv_cell(text: &str) -> String {
    const FORMULA: [char; 8] = ['=', '+', '-', '@', '＝', '＋', '－', '＠'];
    // A spreadsheet may take a semicolon or a vertical bar for the end of a cell, too.
    const SEPARATORS: [char; 4] = [',', ';', '|', '"'];
    let mut cell = escaped(text);
    if cell.trim_start().starts_with(FORMULA) {
        cell.insert(0, '\'');
    }
    if cell.contains(SEPARATORS) { format!("\"{}\"", cell.replace('"', "\"\"")) } else { cell }
}
