//! A report as CSV, for spreadsheets and scripts: a header, then one line per row and currency.
//!
//! Text that a spreadsheet would take for a formula begins with an apostrophe. Numbers are never changed: they are orderd's
//! own, and a minus before a number is no formula.

use std::io::{self, Write};

use crate::cli::csv_cell::csv_cell;
use crate::ledger::report::{GroupBy, Report};
use crate::ledger::{ChargeSums, Figures};

/// Writes the rows. Dead letters are left out, since they have neither currency nor amount.
pub(super) fn write(report: &Report, out: &mut dyn Write) -> io::Result<()> {
    let charges = if report.by == GroupBy::Product { "" } else { ",shipping,fees,tax,discount,total" };
    writeln!(out, "{},currency,orders,quantity,revenue{charges}", report.by)?;
    for block in &report.currencies {
        for row in &block.rows {
            let Figures { orders, quantity, revenue } = row.figures;
            write!(out, "{},{},{orders},{quantity},{revenue}", csv_cell(&row.key), csv_cell(&block.currency))?;
            if let (Some(ChargeSums { shipping, fees, tax, discount }), Some(total)) = (row.charges, row.total) {
                write!(out, ",{shipping},{fees},{tax},{discount},{total}")?;
            }
            writeln!(out)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::OrderFigures;
    use crate::ledger::report::{CurrencyReport, ReportRow, Window};

    #[test]
    fn a_product_is_never_a_formula_and_a_negative_number_stays_a_number() {
        let now = "2026-11-22T08:00:00Z".parse().unwrap();
        let figures = Figures { orders: 1, quantity: -2, revenue: "-5.00".parse().unwrap() };
        let names = ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", " =1", "＝1", "Laptop", "a-b", "a;=1", "\"=1"];
        let rows = names.map(|key| ReportRow { key: key.to_owned(), figures, charges: None, total: None }).into();
        let processed = OrderFigures { figures, ..OrderFigures::default() };
        let (cancelled, prevented, failed) = Default::default();
        let (currency, failed_again, failed_discarded) = ("=EUR".to_owned(), 0, 0);
        let currencies = vec![CurrencyReport {
            currency,
            processed,
            cancelled,
            prevented,
            failed,
            failed_again,
            failed_discarded,
            rows,
        }];
        let window = Window { since: now, until: now };
        let mut out = Vec::new();
        write(&Report { window, by: GroupBy::Product, currencies, dead_lettered: Vec::new() }, &mut out).unwrap();
        let text = String::from_utf8(out).unwrap();
        let expected = [
            "'=1+1",
            "'+1",
            "'-1",
            "'@SUM(A1)",
            "\\t=1",
            "\\r=1",
            "' =1",
            "'＝1",
            "Laptop",
            "a-b",
            "\"a;=1\"",
            "\"\"\"=1\"",
        ];
        let lines: Vec<_> = expected.map(|key| format!("{key},'=EUR,1,-2,-5.00")).into();
        assert_eq!(text.lines().skip(1).collect::<Vec<_>>(), lines);
    }
}
