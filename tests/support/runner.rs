//! How a ring of tests with a main of its own runs: on one state that all share, or skipped with a reason.

use std::{
    env,
    sync::{Arc, OnceLock},
};

use libtest_mimic::{Arguments, Completion, Trial};

/// The tests of a ring, by name; each is given what the ring prepared.
pub(crate) type Test<S> = (&'static str, fn(&S));

/// Lists tests by module and function.
macro_rules! tests {
    ($($module:ident :: $name:ident),+ $(,)?) => {
        &[$((concat!(stringify!($module), "::", stringify!($name)), $module::$name as fn(&_))),+]
    };
}
pub(crate) use tests;

/// What all tests of a run share, or the reason why they are skipped. It is there before the first one begins.
pub(crate) type State<S> = Arc<OnceLock<Result<S, String>>>;

/// Returns the tests of a list as trials; `given` picks out of the state what a test of that name gets.
pub(crate) fn trials<S: Send + Sync + 'static, G: 'static>(
    tests: &[Test<G>],
    state: &State<S>,
    given: for<'a> fn(&'a S, &str) -> &'a G,
) -> Vec<Trial> {
    let trial = |(name, test): &Test<G>| {
        let (state, name, test) = (Arc::clone(state), *name, *test);
        Trial::ignorable_test(name, move || match state.get().unwrap() {
            Ok(state) => {
                test(given(state, name));
                Ok(Completion::Completed)
            }
            Err(reason) => Ok(Completion::ignored_with(reason)),
        })
    };
    tests.iter().map(trial).collect()
}

/// Whether any trial is going to run, as far as `counts` says that it matters.
pub(crate) fn runs(arguments: &Arguments, trials: &[Trial], counts: impl Fn(&str) -> bool) -> bool {
    let mut trials = trials.iter();
    !arguments.list && trials.any(|trial| counts(trial.name()) && !arguments.is_filtered_out(trial))
}

/// Says why the tests of a ring are skipped. Returns whether that is a failure, as it is with `CI=true`.
pub(crate) fn skipped(ring: &str, reason: &str) -> bool {
    eprintln!("the tests {ring} are skipped: {reason}");
    let fails = env::var("CI").is_ok_and(|value| value == "true");
    if fails {
        eprintln!("with CI=true that is a failure");
    }
    fails
}
