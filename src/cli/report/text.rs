//! A report as text: a table with bars for each currency.

use std::io::{self, Write};

use jiff::Timestamp;
use jiff::tz::TimeZone;

use crate::cli::table::{self, Layout};
use crate::cli::text::{counted, shortened};
use crate::domain::ExactSum;
use crate::escape::escaped;
use crate::ledger::report::{CurrencyReport, DeadLettered, GroupBy, Report, ReportRow};
use crate::ledger::{ChargeSums, Figures};

/// Widest line, in columns: that of a usual terminal.
const MAX_WIDTH: usize = 80;
/// Width of the longest bar, in columns: as much as fits, within these bounds.
const MIN_BAR_WIDTH: usize = 8;
const MAX_BAR_WIDTH: usize = 30;
/// Most characters shown of a product's name. The other formats print all of it.
const MAX_KEY_CHARS: usize = 36;

/// Writes the whole report.
pub(super) fn write(report: &Report, out: &mut dyn Write) -> io::Result<()> {
    let window = report.window;
    let (since, until) = (minute(window.since), minute(window.until));
    writeln!(out, "orders and revenue by {}, from {since} to {until} UTC", report.by)?;
    if report.currencies.is_empty() {
        writeln!(out, "\n  no orders in this period")?;
    }
    for block in &report.currencies {
        write_block(report.by, block, out)?;
    }
    write_dead_lettered(&report.dead_lettered, out)
}

/// A time in UTC, to the minute.
fn minute(moment: Timestamp) -> String {
    moment.to_zoned_datetime(TimeZone::UTC).strftime("%Y-%m-%d %H:%M").to_string()
}

fn write_block(by: GroupBy, block: &CurrencyReport, out: &mut dyn Write) -> io::Result<()> {
    let currency = if block.currency == "XXX" { "no currency" } else { &block.currency };
    writeln!(out, "\n{}", escaped(currency))?;
    let mut table = table::new([&by.to_string().to_uppercase(), "ORDERS", "PIECES", "REVENUE", ""]);
    let places = block.rows.iter().map(|row| row.figures.revenue.places()).max().unwrap_or(0);
    let key = |row: &ReportRow| shortened(&escaped(&row.key), MAX_KEY_CHARS);
    let mut rows: Vec<_> = block.rows.iter().map(|row| cells(&key(row), row.figures, places)).collect();
    // No sum of statuses: a processed order was accepted before, and would count twice.
    if by != GroupBy::Status {
        rows.push(sum_cells(by, block, places));
    }
    table.add_rows(rows);
    // The column of the bars is still empty.
    let used: usize = table.column_max_content_widths().iter().map(|width| usize::from(*width) + 2).sum();
    let bars = Bars::of(&block.rows, MAX_WIDTH.saturating_sub(used + 1).clamp(MIN_BAR_WIDTH, MAX_BAR_WIDTH));
    for (table_row, row) in table.row_iter_mut().zip(&block.rows) {
        table_row.add_cell(bars.of_row(row).into());
    }
    table::write(table, &Layout { numbers: 1..4, ..Layout::default() }, out)?;
    let charges = block.processed.charges;
    if !charges.is_zero() {
        let ChargeSums { shipping, fees, tax, discount } = charges;
        let total = block.processed.total;
        let all = [total, shipping, fees, discount, tax];
        let places = all.iter().map(ExactSum::places).max().unwrap_or(0).max(places);
        let [total, shipping, fees, discount, tax] = all.map(|amount| amount.with_places(places));
        writeln!(out, "  paid {total}: goods, shipping {shipping}, fees {fees}, discount {discount}, tax {tax}")?;
        writeln!(out, "  (where prices include the tax, it is in the revenue already)")?;
    }
    for (orders, one, several) in [
        (&block.cancelled, "was cancelled and is subtracted", "were cancelled and are subtracted"),
        (&block.prevented, "was cancelled before it was processed", "were cancelled before they were processed"),
        (&block.failed, "has failed and is not processed", "have failed and are not processed"),
    ] {
        let Figures { orders, revenue, .. } = orders.figures;
        if orders != 0 && by != GroupBy::Status {
            let what = if orders == 1 { one } else { several };
            let (orders, revenue) = (counted(orders, "order"), revenue.with_places(places));
            writeln!(out, "  {orders} worth {revenue} {what}")?;
        }
    }
    let of_those = [(block.failed_again, "failed again after a replay"), (block.failed_discarded, "discarded")];
    let of_those = of_those.iter().filter(|(orders, _)| *orders != 0).map(|(orders, what)| format!("{orders} {what}"));
    let of_those = of_those.collect::<Vec<_>>().join(", ");
    if !of_those.is_empty() {
        writeln!(out, "    of the failed: {of_those}")?;
    }
    if by == GroupBy::Status && block.prevented.figures.orders != 0 {
        writeln!(out, "  (an order that was cancelled before it arrived is prevented, and was never accepted)")?;
    }
    if by == GroupBy::Product && !all_are_counted(block) {
        let Figures { orders, revenue, .. } = block.processed.figures;
        let was = if orders == 1 { "was" } else { "were" };
        let (orders, revenue) = (counted(orders, "order"), revenue.with_places(places));
        writeln!(out, "  {orders} worth {revenue} {was} processed in this period: products are counted when their")?;
        writeln!(out, "  analytics events are handled")?;
    }
    Ok(())
}

fn sum(rows: &[ReportRow]) -> Figures {
    let mut sum = Figures::default();
    rows.iter().for_each(|row| sum.add(row.figures));
    sum
}

/// Whether the products add up to the processed orders.
fn all_are_counted(block: &CurrencyReport) -> bool {
    let (sum, processed) = (sum(&block.rows), block.processed.figures);
    (sum.quantity, sum.revenue) == (processed.quantity, processed.revenue)
}

/// The last row. An order with several products is in the row of each of them, so their orders do not add up.
fn sum_cells(by: GroupBy, block: &CurrencyReport, places: usize) -> [String; 4] {
    let mut cells = cells("", sum(&block.rows), places);
    if by == GroupBy::Product && all_are_counted(block) {
        cells[1] = block.processed.figures.orders.to_string();
    } else if by == GroupBy::Product {
        cells[1].clear();
    }
    cells
}

/// `places`: decimal places of all amounts in the column.
fn cells(key: &str, figures: Figures, places: usize) -> [String; 4] {
    let Figures { orders, quantity, revenue } = figures;
    [key.to_owned(), orders.to_string(), quantity.to_string(), revenue.with_places(places)]
}

/// Bars in proportion to revenue, or to the number of orders if there is no revenue.
struct Bars {
    longest: f64,
    /// Width of the longest bar, in columns.
    width: usize,
    by_orders: bool,
}

impl Bars {
    fn of(rows: &[ReportRow], width: usize) -> Self {
        let longest = |worth: fn(&ReportRow) -> f64| rows.iter().map(worth).fold(0.0, f64::max);
        let revenue = longest(|row| row.figures.revenue.approximate());
        if revenue > 0.0 {
            Bars { longest: revenue, width, by_orders: false }
        } else {
            Bars { longest: longest(|row| row.figures.orders as f64), width, by_orders: true }
        }
    }

    fn of_row(&self, row: &ReportRow) -> String {
        const EIGHTHS: [&str; 8] = ["", "▏", "▎", "▍", "▌", "▋", "▊", "▉"];
        let worth = if self.by_orders { row.figures.orders as f64 } else { row.figures.revenue.approximate() };
        if worth <= 0.0 || self.longest <= 0.0 {
            return String::new();
        }
        // A value above zero gets a visible bar, however small it is.
        let eighths = (worth / self.longest * (self.width * 8) as f64).round().max(1.0) as usize;
        "█".repeat(eighths / 8) + EIGHTHS[eighths % 8]
    }
}

fn write_dead_lettered(dead_lettered: &[DeadLettered], out: &mut dyn Write) -> io::Result<()> {
    if dead_lettered.is_empty() {
        return Ok(());
    }
    writeln!(out, "\ndead-lettered messages")?;
    let mut table = table::new(["CONSUMER", "REASON", "MESSAGES", "UNRESOLVED", "REPLAYED", "DISCARDED"]);
    for DeadLettered { consumer, reason, messages, unresolved, replayed, discarded } in dead_lettered {
        let [messages, unresolved, replayed, discarded] =
            [messages, unresolved, replayed, discarded].map(ToString::to_string);
        table.add_row([&*escaped(consumer), &*escaped(reason), &messages, &unresolved, &replayed, &discarded]);
    }
    table::write(table, &Layout { numbers: 2..6, ..Layout::default() }, out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::OrderFigures;
    use crate::ledger::report::Window;

    fn row(key: &str, orders: i64, revenue: &str) -> ReportRow {
        let figures = Figures { orders, quantity: 2 * orders, revenue: revenue.parse().unwrap() };
        ReportRow { key: key.to_owned(), figures, charges: None, total: None }
    }

    fn currency(code: &str, processed: OrderFigures, rows: Vec<ReportRow>) -> CurrencyReport {
        let (cancelled, prevented, failed) = Default::default();
        let (currency, failed_again, failed_discarded) = (code.to_owned(), 0, 0);
        CurrencyReport { currency, processed, cancelled, prevented, failed, failed_again, failed_discarded, rows }
    }

    fn text(by: GroupBy, rows: Vec<ReportRow>, processed: Figures, dead_lettered: Vec<DeadLettered>) -> String {
        let processed = OrderFigures { figures: processed, ..OrderFigures::default() };
        let window =
            Window { since: "2026-11-20T00:00:00Z".parse().unwrap(), until: "2026-11-22T08:31:00Z".parse().unwrap() };
        let currencies = vec![currency("EUR", processed, rows)];
        let mut out = Vec::new();
        write(&Report { window, by, currencies, dead_lettered }, &mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn columns_line_up_and_bars_are_in_proportion() {
        let rows = vec![row("2026-11-20", 10, "1200.00"), row("2026-11-21", 1, "20.09")];
        let processed = row("", 11, "1220.09").figures;
        let (consumer, reason) = ("order".to_owned(), "malformed".to_owned());
        let dead_lettered =
            vec![DeadLettered { consumer, reason, messages: 6, unresolved: 3, replayed: 2, discarded: 1 }];
        let expected = "\
orders and revenue by day, from 2026-11-20 00:00 to 2026-11-22 08:31 UTC

EUR
  DAY         ORDERS  PIECES  REVENUE
  2026-11-20      10      20  1200.00  ██████████████████████████████
  2026-11-21       1       2    20.09  ▌
                  11      22  1220.09

dead-lettered messages
  CONSUMER  REASON     MESSAGES  UNRESOLVED  REPLAYED  DISCARDED
  order     malformed         6           3         2          1
";
        assert_eq!(text(GroupBy::Day, rows, processed, dead_lettered), expected);
    }

    #[test]
    fn orders_with_several_products_are_counted_once_in_the_sum_and_charges_are_shown_apart() {
        let rows = vec![row("Laptop", 2, "40"), row("Mouse", 2, "5")];
        let figures = Figures { orders: 3, quantity: 8, revenue: "45".parse().unwrap() };
        let charges = ChargeSums { shipping: "4.90".parse().unwrap(), ..ChargeSums::default() };
        let processed = OrderFigures { figures, charges, total: "49.90".parse().unwrap() };
        let mut out = Vec::new();
        let block = currency("EUR", processed, rows);
        write_block(GroupBy::Product, &block, &mut out).unwrap();
        let shown = String::from_utf8(out).unwrap();
        let words = shown.split_whitespace().collect::<Vec<_>>().join(" ");
        let expected = "3 8 45 paid 49.90: goods, shipping 4.90, fees 0.00, discount 0.00, tax 0.00";
        assert!(words.contains(expected), "{shown}");
    }

    #[test]
    fn amounts_of_a_column_have_the_same_decimal_places_and_one_order_is_not_several() {
        let rows = vec![row("Laptop", 1, "1200"), row("Mouse", 2, "-5.5"), row("Pen", 1, "0.125")];
        let figures = |orders| OrderFigures { figures: row("", orders, "5").figures, ..OrderFigures::default() };
        let block = CurrencyReport {
            cancelled: figures(1),
            prevented: figures(2),
            failed: figures(1),
            failed_again: 1,
            ..currency("EUR", figures(1), rows)
        };
        let mut out = Vec::new();
        write_block(GroupBy::Product, &block, &mut out).unwrap();
        let shown = String::from_utf8(out).unwrap();
        for part in [
            " 1200.000 ",
            " -5.500\n",
            " 0.125 ",
            " 1194.625\n",
            "  1 order worth 5.000 was cancelled and is subtracted\n",
            "  2 orders worth 5.000 were cancelled before they were processed\n",
            "  1 order worth 5.000 has failed and is not processed\n    of the failed: 1 failed again after a replay\n",
            "  1 order worth 5.000 was processed in this period",
        ] {
            assert!(shown.contains(part), "no {part:?}:\n{shown}");
        }
    }

    #[test]
    fn control_characters_in_a_product_do_not_reach_the_terminal() {
        let shown = text(GroupBy::Product, vec![row("\u{1b}[2Jx\ny", 1, "5")], row("", 1, "5").figures, Vec::new());
        assert!(!shown.contains('\u{1b}') && shown.contains("[2Jx"), "{shown}");
        assert_eq!(shown.lines().count(), 6, "{shown}");
    }

    #[test]
    fn control_characters_in_a_currency_do_not_reach_the_terminal() {
        let figures = row("", 1, "5").figures;
        let block = currency("\u{1b}[2J", OrderFigures { figures, ..OrderFigures::default() }, Vec::new());
        let mut out = Vec::new();
        write_block(GroupBy::Product, &block, &mut out).unwrap();
        assert!(!String::from_utf8(out).unwrap().contains('\u{1b}'));
    }

    #[test]
    fn usual_figures_fit_a_terminal_whatever_the_length_of_names() {
        let rows = vec![row(&"x".repeat(300), 12_345, "1234567.89"), row("Mouse", 1, "19.99")];
        let shown = text(GroupBy::Product, rows, row("", 12_346, "1234587.88").figures, Vec::new());
        let widest = shown.lines().map(|line| line.chars().count()).max();
        assert!(widest <= Some(MAX_WIDTH), "{widest:?}\n{shown}");
        assert!(shown.contains("xxx…") && shown.contains('█'), "{shown}");
    }

    #[test]
    fn orders_not_yet_counted_by_product_are_mentioned() {
        let shown = text(GroupBy::Product, vec![row("Laptop", 1, "5")], row("", 3, "15").figures, Vec::new());
        assert!(shown.contains("3 orders worth 15 were processed in this period"), "{shown}");
    }
}
