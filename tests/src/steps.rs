//! Runs named steps that share one lab, as a test program without libtest: one lab per group, steps in order, a line
//! for each. A group has its own process: no panic, crash or hang in it affects others, and its labs are always taken
//! down.
//!
//! ```text
//! arguments   what `cargo test` and nextest pass on: filters, --exact, --skip, --list, --ignored, --test-threads
//! schedule    which groups run when, and the lines that `./dev test` and `xtask` read
//! process     the process of a group, from its parent's side
//! child       the process of a group, from its own side
//! labs        names of labs, and taking down those of a process that was killed
//! ```

mod arguments;
mod child;
mod labs;
mod process;
mod schedule;

pub use labs::name as lab_name;

use arguments::Arguments;
use std::process::ExitCode;

/// Result of a step: an error or a panic fails it.
pub type Outcome = anyhow::Result<()>;

/// A named behaviour.
pub struct Step<C> {
    /// Name, a sentence with underscores.
    pub name: &'static str,
    /// The test of the shared lab.
    pub run: fn(&C) -> Outcome,
}

/// Steps named by their functions.
#[macro_export]
macro_rules! steps {
    ($($step:ident),* $(,)?) => {
        vec![$($crate::Step { name: stringify!($step), run: $step }),*]
    };
}

/// Groups of one test each, named by their functions: they share no lab.
#[macro_export]
macro_rules! tests {
    ($($test:ident),* $(,)?) => {
        vec![$($crate::steps::Group::single(stringify!($test), $test)),*]
    };
}

/// Modules of a test program, in the order in which they run; each has a function `groups`.
#[macro_export]
macro_rules! modules {
    ($($module:ident),* $(,)?) => {
        vec![$($crate::steps::Module::new(stringify!($module), $module::groups())),*]
    };
}

/// Result of a test: nothing, if it fails by a panic only, or an [`Outcome`].
pub trait IntoOutcome {
    /// Converts it into a result.
    ///
    /// # Errors
    /// The test failed.
    fn into_outcome(self) -> Outcome;
}

impl IntoOutcome for () {
    fn into_outcome(self) -> Outcome {
        Ok(())
    }
}

impl IntoOutcome for Outcome {
    fn into_outcome(self) -> Outcome {
        self
    }
}

/// Receives the result of a step: its whole name, and whether it passed.
type Report<'a> = dyn FnMut(&str, bool) + 'a;
/// Brings the lab up and runs the steps with these whole names; the first argument is the prefix of their own names.
type Work = dyn FnOnce(&str, &[String], &mut Report<'_>) + Send;

/// Steps that share one lab.
pub struct Group {
    /// `None`: the group is a single test, which has its own name.
    name: Option<&'static str>,
    steps: Vec<&'static str>,
    is_omitted: fn() -> bool,
    run: Box<Work>,
}

impl Group {
    /// Steps with the function that brings their lab up; it is not called if no step is selected.
    pub fn new<C: 'static>(
        name: &'static str,
        up: impl FnOnce() -> anyhow::Result<C> + Send + 'static,
        steps: Vec<Step<C>>,
    ) -> Self {
        Self {
            name: Some(name),
            steps: steps.iter().map(|step| step.name).collect(),
            is_omitted: || false,
            run: Box::new(move |prefix, chosen, report| {
                child::run_steps(prefix, up, &steps, chosen, report);
            }),
        }
    }

    /// A test that shares no lab.
    pub fn single<T: IntoOutcome + 'static>(name: &'static str, test: fn() -> T) -> Self {
        Self {
            name: None,
            steps: vec![name],
            is_omitted: || false,
            run: Box::new(move |_, chosen, report| {
                for name in chosen {
                    child::run_one(name, || test().into_outcome(), report);
                }
            }),
        }
    }

    /// Skips the group if this function returns true. Its tests then count as ignored, and the function prints the
    /// reason.
    #[must_use]
    pub fn unless(self, is_omitted: fn() -> bool) -> Self {
        Self { is_omitted, ..self }
    }

    /// Prefix of the names of its steps.
    fn prefix(&self, module: &str) -> String {
        match self.name {
            Some(name) => format!("{module}::{name}"),
            None => module.to_owned(),
        }
    }

    /// Identifier of the group within the program.
    fn id(&self, module: &str) -> String {
        match self.name {
            Some(name) => format!("{module}::{name}"),
            None => format!("{module}::{}", self.steps[0]),
        }
    }

    /// Whole names of its steps that the arguments select.
    fn chosen(&self, module: &str, arguments: &Arguments) -> Vec<String> {
        let prefix = self.prefix(module);
        let names = || self.steps.iter().map(|step| format!("{prefix}::{step}"));
        match arguments.whole_groups && names().any(|name| arguments.wants(&name)) {
            true => names().collect(),
            false => names().filter(|name| arguments.wants(name)).collect(),
        }
    }
}

/// The groups of one source file.
pub struct Module {
    name: &'static str,
    groups: Vec<Group>,
    at_once: Option<usize>,
    is_timed: bool,
}

impl Module {
    /// A module with its groups. Modules run in parallel, as many groups at a time as there are processors.
    pub fn new(name: &'static str, groups: Vec<Group>) -> Self {
        Self {
            name,
            groups,
            at_once: None,
            is_timed: false,
        }
    }

    /// Runs while no other module does: its tests bound times, or measure them.
    #[must_use]
    pub fn timed(self) -> Self {
        Self {
            is_timed: true,
            ..self
        }
    }

    /// Runs this many of its groups at a time, and no other module meanwhile: for groups that mostly wait.
    #[must_use]
    pub fn at_once(self, groups: usize) -> Self {
        Self {
            at_once: Some(groups),
            ..self
        }
    }

    /// Whether other modules may run at the same time.
    fn is_shared(&self) -> bool {
        !self.is_timed && self.at_once.is_none()
    }
}

/// The `main` of a test program.
pub fn run(modules: Vec<Module>) -> ExitCode {
    let arguments = Arguments::of_this_process();
    if let Some(group) = child::wanted() {
        return child::run(modules, &group, &arguments);
    }
    if arguments.list {
        for module in &modules {
            for group in &module.groups {
                let names = group.chosen(module.name, &arguments);
                names.iter().for_each(|name| println!("{name}: test"));
            }
        }
        return ExitCode::SUCCESS;
    }
    schedule::run(&modules, &arguments)
}
