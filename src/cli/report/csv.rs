//! A report for spreadsheets and scripts: a heading, then one line for each row of each currency.

use std::io::{self, Write};

use csv::Writer;

use crate::ledger::report::Report;

/// Writes the rows. What was dead-lettered is not among them: it has neither currency nor worth.
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
