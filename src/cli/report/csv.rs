//! A report as CSV, for spreadsheets and scripts: a header, then one line per row and currency.

use std::io::{self, Write};

use csv::Writer;

use crate::ledger::report::Report;

/// Writes the rows. Dead letters are left out, since they have neither currency nor amount.
pub(super) fn write(report: &Report, out: &mut dyn Write) -> io::Result<()> {
    let mut csv = Writer::from_writer(out);
    csv.write_record([&report.by.to_string(), "currency", "orders", "quantity", "revenue"])?;
    for block in &report.currencies {
        for row in &block.rows {
            let figures = row.figures;
            let (orders, quantity) = (figures.orders.to_string(), figures.quantity.to_string());
            csv.write_record([&row.key, &block.currency, &orders, &quantity, &figures.revenue.to_string()])?;
        }
    }
    csv.flush()
}
