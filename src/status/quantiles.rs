//! The quantiles that the status shows of a histogram. Pure.

use super::Quantiles;
use crate::metrics::Histogram;

pub(super) fn quantiles(histogram: &Histogram) -> Option<Quantiles> {
    let at = |quantile| histogram.quantile(quantile).map(|duration| duration.as_secs_f64());
    Some(Quantiles { p50: at(0.5)?, p95: at(0.95)?, p99: at(0.99)?, count: histogram.count() })
}
