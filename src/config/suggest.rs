//! "Did you mean": what somebody who wrote an unknown key or word most likely meant.

use super::problem::Place;
use super::source::KeyPath;

/// The nearest of `candidates`, if one is near enough that it was probably meant.
pub(super) fn nearest<'c>(text: &str, candidates: impl IntoIterator<Item = &'c str>) -> Option<&'c str> {
    let text = text.to_lowercase();
    candidates
        .into_iter()
        .map(|candidate| (distance(&text, &candidate.to_lowercase()), candidate))
        // One slip in three letters: `host` must not suggest `port`.
        .filter(|(distance, candidate)| *distance <= (candidate.len().min(text.len()) / 3).max(1))
        .min()
        .map(|(_, candidate)| candidate)
}

/// Swapped words count as one slip: `max_body` for `body_max`.
fn distance(a: &str, b: &str) -> usize {
    let sorted = |text: &str| {
        let mut words: Vec<&str> = text.split(['_', '-', '.']).collect();
        words.sort_unstable();
        words.join("_")
    };
    let straight = strsim::damerau_levenshtein(a, b);
    straight.min(1 + strsim::damerau_levenshtein(&sorted(a), &sorted(b)))
}

/// `; did you mean ...?`, or nothing.
pub(super) fn did_you_mean<'c>(text: &str, candidates: impl IntoIterator<Item = &'c str>) -> String {
    nearest(text, candidates).map(|nearest| format!("; did you mean `{nearest}`?")).unwrap_or_default()
}

/// What was meant by a key that does not exist, given all that do.
pub(super) fn for_unknown(path: &[String], keys: &[KeyPath], place: &Place) -> String {
    let Some((key, parent)) = path.split_last() else { return String::new() };
    if let (Place::Variable(variable), true) = (place, parent.is_empty())
        && let Some(hint) = for_variable(key, variable, keys)
    {
        return hint;
    }
    let beside = keys.iter().filter(|known| known.len() == path.len() && known.starts_with(parent));
    let beside = beside.filter_map(|known| known.last()).map(String::as_str);
    if let Some(nearest) = nearest(key, beside) {
        return format!("; did you mean `{nearest}`?");
    }
    if parent.is_empty() && ["kafka", "rabbitmq", "console"].contains(&key.as_str()) {
        return format!("; did you mean `outputs.{key}`?");
    }
    let elsewhere = keys.iter().find(|known| known.last() == Some(key));
    match elsewhere {
        Some(known) if known.len() == 1 => {
            format!("; `{key}` stands at the top of the file, before the first [section]")
        }
        Some(known) => format!("; did you mean `{}`?", known.join(".")),
        None => String::new(),
    }
}

/// Slips that only variables know: one underscore for two, and those that Kubernetes makes for a Service.
fn for_variable(key: &str, variable: &str, keys: &[KeyPath]) -> Option<String> {
    let flat: Vec<(String, String)> = keys.iter().map(|known| (known.join("_"), known.join("__"))).collect();
    let meant = nearest(key, flat.iter().filter(|(_, full)| full.contains("__")).map(|(flat, _)| flat.as_str()));
    if let Some((_, full)) = flat.iter().find(|(flat, _)| Some(flat.as_str()) == meant) {
        let full = full.to_uppercase();
        return Some(format!("; did you mean RELAY_{full}? Two underscores stand between levels"));
    }
    let service = variable.contains("_SERVICE_") || variable.contains("_PORT_") || variable.ends_with("_PORT");
    service.then(|| "; if Kubernetes makes it for a Service, set `enableServiceLinks: false` in the pod".to_owned())
}

#[cfg(test)]
mod tests {
    use super::nearest;

    #[test]
    fn only_a_slip_is_taken_for_another_word() {
        let keys = ["listen", "body_max", "deadline", "urls", "tls"];
        for (text, meant) in [
            ("lisen", Some("listen")),
            ("litsen", Some("listen")),
            ("LISTEN", Some("listen")),
            ("max_body", Some("body_max")),
            ("body-max", Some("body_max")),
            ("url", Some("urls")),
            ("timeout", None),
            ("host", None),
            ("", None),
        ] {
            assert_eq!(nearest(text, keys), meant, "{text}");
        }
    }
}
