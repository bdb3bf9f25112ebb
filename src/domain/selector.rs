//! Label selectors as Kubernetes has them (`metav1.LabelSelector`).

use std::collections::BTreeMap;

/// The labels of an object.
pub type Labels = BTreeMap<String, String>;

/// A label selector: every requirement must hold; none at all selects everything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selector {
    pub requirements: Vec<Requirement>,
}

/// One requirement on one label.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Requirement {
    pub key: String,
    pub operator: Operator,
}

/// What a requirement asks of the label's value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Operator {
    In(Vec<String>),
    /// Also true where the label is absent, as in `k8s.io/apimachinery/pkg/labels`.
    NotIn(Vec<String>),
    Exists,
    DoesNotExist,
}

impl Selector {
    /// Whether this selects everything, even what is not known.
    pub fn is_empty(&self) -> bool {
        self.requirements.is_empty()
    }

    /// Whether an object with these labels is selected.
    pub fn matches(&self, labels: &Labels) -> bool {
        self.requirements.iter().all(|requirement| {
            let value = labels.get(&requirement.key);
            match &requirement.operator {
                Operator::In(values) => value.is_some_and(|value| values.contains(value)),
                Operator::NotIn(values) => !value.is_some_and(|value| values.contains(value)),
                Operator::Exists => value.is_some(),
                Operator::DoesNotExist => value.is_none(),
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(pairs: &[(&str, &str)]) -> Labels {
        pairs
            .iter()
            .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
            .collect()
    }

    #[track_caller]
    fn check(operator: Operator, with: &[(&str, &str)], expected: bool) {
        let selector = Selector {
            requirements: vec![Requirement {
                key: "team".to_owned(),
                operator,
            }],
        };
        assert_eq!(selector.matches(&labels(with)), expected);
    }

    #[test]
    fn requirements_follow_apimachinery() {
        let blue = || vec!["blue".to_owned()];
        check(Operator::In(blue()), &[("team", "blue")], true);
        check(Operator::In(blue()), &[("team", "red")], false);
        check(Operator::In(blue()), &[], false);
        check(Operator::NotIn(blue()), &[("team", "blue")], false);
        check(Operator::NotIn(blue()), &[("team", "red")], true);
        check(Operator::NotIn(blue()), &[], true);
        check(Operator::Exists, &[("team", "")], true);
        check(Operator::Exists, &[], false);
        check(Operator::DoesNotExist, &[("team", "")], false);
        check(Operator::DoesNotExist, &[], true);
    }

    #[test]
    fn an_empty_selector_selects_everything() {
        assert!(Selector::default().matches(&Labels::new()));
    }
}
