//! Names of outputs and metrics, and the indices they become.
use crate::error::{Error, InitError, Result};

/// An output by its place in [`Plugin::OUTPUTS`](crate::Plugin::OUTPUTS).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Output(u16);

impl Output {
    /// The stream itself: the next plugin of the pipeline, then the topic.
    pub const STREAM: Self = Self(u16::MAX);

    /// The output at `index` of `OUTPUTS`; the attribute macro writes this.
    #[doc(hidden)]
    #[must_use]
    pub const fn nth(index: u16) -> Self {
        Self(index)
    }

    /// Finds an output by name while compiling, for a plugin without the attribute macro:
    /// `const ALERTS: Output = Output::named(MyPlugin::OUTPUTS, "alerts");`
    ///
    /// # Panics
    /// Where no output has this name: in a `const`, a compile-time error.
    #[must_use]
    pub const fn named(outputs: &[&str], name: &str) -> Self {
        match position(outputs, name) {
            Some(at) => Self(at),
            None => panic!("no output of this name in OUTPUTS"),
        }
    }
}

/// A counter by its place in [`Plugin::METRICS`](crate::Plugin::METRICS).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Metric(u16);

impl Metric {
    /// The counter at `index` of `METRICS`; the attribute macro writes this.
    #[doc(hidden)]
    #[must_use]
    pub const fn nth(index: u16) -> Self {
        Self(index)
    }

    /// Finds a counter by name while compiling.
    ///
    /// # Panics
    /// Where no metric has this name: in a `const`, a compile-time error.
    #[must_use]
    pub const fn named(metrics: &[&str], name: &str) -> Self {
        match position(metrics, name) {
            Some(at) => Self(at),
            None => panic!("no metric of this name in METRICS"),
        }
    }
}

/// Where a record goes: an index the compiler found, or a name looked up while records pass.
#[derive(Debug, Clone, Copy)]
pub enum Target<'a, T> {
    /// Found while compiling.
    Known(T),
    /// To be found.
    Named(&'a str),
}

impl From<Output> for Target<'_, Output> {
    fn from(output: Output) -> Self {
        Self::Known(output)
    }
}

impl From<Metric> for Target<'_, Metric> {
    fn from(metric: Metric) -> Self {
        Self::Known(metric)
    }
}

impl<'a, T> From<&'a str> for Target<'a, T> {
    fn from(name: &'a str) -> Self {
        Self::Named(name)
    }
}

/// The outputs the host knows: those of the manifest, in its order.
#[derive(Debug, Clone, Copy)]
pub struct Outputs<'a> {
    names: &'a [String],
}

impl<'a> Outputs<'a> {
    pub(crate) fn new(names: &'a [String]) -> Self {
        Self { names }
    }

    /// Whether the manifest names this output.
    #[must_use]
    pub fn has(&self, name: &str) -> bool {
        self.names.iter().any(|known| known == name)
    }

    /// All names.
    pub fn iter(&self) -> impl Iterator<Item = &'a str> {
        self.names.iter().map(String::as_str)
    }
}

/// From the plugin's order of outputs to the numbers of the host.
#[derive(Debug)]
pub(crate) struct OutputMap {
    declared: &'static [&'static str],
    numbers: Vec<u16>,
}

impl OutputMap {
    /// Finds each declared output among the host's, whose n-th name has number n, from 1.
    pub(crate) fn new(declared: &'static [&'static str], host: &[String]) -> std::result::Result<Self, InitError> {
        let number = |name: &&str| {
            let at = host.iter().position(|known| known == name);
            at.and_then(|at| u16::try_from(at + 1).ok()).ok_or_else(|| {
                let text = "the plugin uses output `{}`, which its manifest does not name; add it to [io] outputs";
                InitError::Unsupported(text.replace("{}", name))
            })
        };
        let numbers = declared.iter().map(number).collect::<std::result::Result<_, _>>()?;
        Ok(Self { declared, numbers })
    }

    /// The host's number of an output.
    #[inline]
    pub(crate) fn number(&self, target: Target<'_, Output>) -> Result<u16> {
        let index = match target {
            Target::Known(Output::STREAM) => return Ok(weir_plugin_abi::OUTPUT_STREAM),
            Target::Known(Output(index)) => index,
            Target::Named(name) => position(self.declared, name).ok_or_else(|| unknown("output", name, self.declared))?,
        };
        self.numbers.get(usize::from(index)).copied().ok_or(Error::fixed("this output belongs to another plugin"))
    }
}

/// The place of a counter.
pub(crate) fn metric(declared: &[&str], target: Target<'_, Metric>) -> Result<usize> {
    match target {
        Target::Known(Metric(index)) => Ok(usize::from(index)),
        Target::Named(name) => position(declared, name).map(usize::from).ok_or_else(|| unknown("metric", name, declared)),
    }
}

#[cold]
fn unknown(kind: &str, name: &str, known: &[&str]) -> Error {
    Error::new(format_args!("the plugin names no {kind} `{name}`; it has: {}", known.join(", ")))
}

const fn position(names: &[&str], name: &str) -> Option<u16> {
    let mut at = 0;
    while at < names.len() {
        if equal(names[at].as_bytes(), name.as_bytes()) {
            return Some(at as u16);
        }
        at += 1;
    }
    None
}

/// `==` on slices is not const yet.
const fn equal(a: &[u8], b: &[u8]) -> bool {
    if a.len() != b.len() {
        return false;
    }
    let mut at = 0;
    while at < a.len() {
        if a[at] != b[at] {
            return false;
        }
        at += 1;
    }
    true
}
