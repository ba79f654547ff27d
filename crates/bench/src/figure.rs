//! Figures: medians, spread, and the machine's load during the measurement.

use serde::{Deserialize, Serialize};

/// One measured quantity.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Figure {
    /// Table it belongs to.
    pub part: String,
    /// Name of the measured quantity.
    pub name: String,
    /// Variant that was measured.
    pub variant: String,
    /// Unit of the values.
    pub unit: String,
    /// One value per run, in order: runs of the same number alternate.
    pub values: Vec<f64>,
    /// Load average over one minute at the end of the measurement.
    pub load: f64,
    /// Day, kernel and CPUs of the measurement.
    pub taken: String,
}

impl Figure {
    /// Quantile of the values, 0 to 1.
    pub fn quantile(&self, part: f64) -> f64 {
        let mut sorted = self.values.clone();
        sorted.sort_by(f64::total_cmp);
        let last = sorted.len().saturating_sub(1);
        sorted
            .get((part * last as f64).round() as usize)
            .copied()
            .unwrap_or(f64::NAN)
    }

    /// The middle value.
    pub fn median(&self) -> f64 {
        self.quantile(0.5)
    }
}

/// Figures of one call, or of the page.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Report {
    /// All figures.
    pub figures: Vec<Figure>,
    /// Day, kernel and CPUs for added figures.
    #[serde(skip)]
    here: String,
}

impl Report {
    /// An empty report about this machine.
    pub fn begin() -> Self {
        let name = nix::sys::utsname::uname();
        let kernel = name.map_or_else(
            |_| "unknown".into(),
            |name| name.release().to_string_lossy().into_owned(),
        );
        let cpus = std::thread::available_parallelism().map_or(1, usize::from);
        Report {
            figures: Vec::new(),
            here: format!("{}, Linux {kernel}, {cpus} CPUs", today()),
        }
    }

    /// Adds the value of one run.
    pub fn add(&mut self, part: &str, name: &str, variant: &str, unit: &str, value: f64) {
        let same = |f: &&mut Figure| f.part == part && f.name == name && f.variant == variant;
        let load = load();
        match self.figures.iter_mut().find(same) {
            Some(figure) => {
                figure.values.push(value);
                figure.load = load;
            }
            None => self.figures.push(Figure {
                part: part.into(),
                name: name.into(),
                variant: variant.into(),
                unit: unit.into(),
                values: vec![value],
                load,
                taken: self.here.clone(),
            }),
        }
    }

    /// Takes over an earlier report's parts that this one did not measure. Parts stay in their order.
    pub fn keep(&mut self, before: Report) {
        let names = |report: &Report| -> Vec<String> {
            let parts = report.figures.iter().map(|figure| figure.part.clone());
            parts.collect()
        };
        let (earlier, measured) = (names(&before), names(self));
        let own = std::mem::take(&mut self.figures).into_iter();
        let kept = before.figures.into_iter();
        self.figures = kept
            .filter(|f| !measured.contains(&f.part))
            .chain(own)
            .collect();
        let place = |figure: &Figure| earlier.iter().position(|part| *part == figure.part);
        // Stable: figures of a part stay in order; a new part comes last.
        let last = earlier.len();
        self.figures
            .sort_by_key(|figure| place(figure).unwrap_or(last));
    }

    /// Median of the ratios of runs with the same number.
    pub fn ratio(&self, figure: &Figure, baseline: &str) -> Option<f64> {
        let base = self.figures.iter().find(|other| {
            other.part == figure.part && other.name == figure.name && other.variant == baseline
        })?;
        let ratios = figure.values.iter().zip(&base.values).map(|(a, b)| a / b);
        let ratios = Figure {
            values: ratios.collect(),
            ..figure.clone()
        };
        Some(ratios.median())
    }
}

/// Load average over one minute.
fn load() -> f64 {
    let text = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let first = text.split(' ').next().and_then(|load| load.parse().ok());
    first.unwrap_or(f64::NAN)
}

/// Year, month and day (UTC), by Howard Hinnant's `civil_from_days`.
fn today() -> String {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let days = now.map_or(0, |now| now.as_secs() / 86_400) as i64 + 719_468;
    let era = days.div_euclid(146_097);
    let day_of_era = days.rem_euclid(146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_index = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_index + 2) / 5 + 1;
    let month = if month_index < 10 {
        month_index + 3
    } else {
        month_index - 9
    };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    format!("{year}-{month:02}-{day:02}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_and_ratios_are_of_runs_that_belong_together() {
        let mut report = Report::begin();
        for (ours, plain) in [(2.0, 1.0), (30.0, 10.0), (4.0, 4.0)] {
            report.add("p", "rtt", "ours", "us", ours);
            report.add("p", "rtt", "plain", "us", plain);
        }
        let ours = report.figures[0].clone();
        assert_eq!(ours.median(), 4.0);
        assert_eq!(report.ratio(&ours, "plain"), Some(2.0));
        assert_eq!(report.ratio(&ours, "nobody"), None);
    }

    #[test]
    fn parts_that_were_not_measured_are_kept_whole() {
        let mut before = Report::begin();
        for name in ["a", "b", "c"] {
            before.add("rest", name, "ours", "us", 1.0);
            before.add("traffic", name, "ours", "us", 1.0);
        }
        let mut now = Report::begin();
        now.add("traffic", "a", "ours", "us", 2.0);
        now.keep(before);
        let shown: Vec<(&str, &str, f64)> = now
            .figures
            .iter()
            .map(|f| (f.part.as_str(), f.name.as_str(), f.median()))
            .collect();
        let kept = [("rest", "a", 1.0), ("rest", "b", 1.0), ("rest", "c", 1.0)];
        assert_eq!(shown, [&kept[..], &[("traffic", "a", 2.0)]].concat());
    }
}
