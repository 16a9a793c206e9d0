//! RabbitMQ's management API, as far as `check --live` asks it: an exchange and what is bound to it. Only reads.

use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use http_body_util::Empty;
use hyper::body::Bytes;
use hyper::header::{ACCEPT, AUTHORIZATION, HOST};
use hyper::{Request, StatusCode, Uri};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tokio::time::timeout;
use zeroize::Zeroizing;

use crate::config;
use crate::publish::http::{self, encoded, host_and_port};
use crate::publish::tls;

/// For one question, connecting included.
const ANSWER_MAX: Duration = Duration::from_secs(10);
/// Bytes of an answer: some ten thousand bindings.
const BODY_MAX: usize = 8 << 20;

/// An exchange as the management API shows it.
#[derive(Debug, Deserialize)]
pub struct Exchange {
    #[serde(rename = "type")]
    pub kind: String,
    pub durable: bool,
    #[serde(default)]
    arguments: serde_json::Value,
}

impl Exchange {
    /// Where a message goes that no binding takes.
    pub fn alternate(&self) -> Option<&str> {
        self.arguments.get("alternate-exchange")?.as_str()
    }
}

#[derive(Debug, Deserialize)]
pub struct Binding {
    pub routing_key: String,
}

/// The exchange, if it exists, and the bindings that lead from it. The error says in one line why that is not known.
pub async fn exchange(
    url: &str,
    config: &config::RabbitMq,
    vhost: &str,
) -> Result<Option<(Exchange, Vec<Binding>)>, String> {
    let path = format!("/api/exchanges/{}/{}", encoded(vhost), encoded(&config.exchange));
    let Some(exchange) = get(url, config, &path).await? else { return Ok(None) };
    let bindings = get(url, config, &format!("{path}/bindings/source")).await?;
    Ok(Some((exchange, bindings.unwrap_or_default())))
}

/// `None` for 404.
async fn get<T: DeserializeOwned>(url: &str, config: &config::RabbitMq, path: &str) -> Result<Option<T>, String> {
    let whole = format!("{}{path}", url.trim_end_matches('/'));
    let uri: Uri = whole.parse().map_err(|_| "management_url is no URL".to_owned())?;
    let shown = format!("{}://{}", uri.scheme_str().unwrap_or("?"), host_and_port(&uri));
    let asked = timeout(ANSWER_MAX, exchange_with(uri, config)).await;
    let (status, body) = match asked {
        Ok(answered) => answered.map_err(|error| format!("{shown}: {error}"))?,
        Err(_) => return Err(format!("{shown}: no answer within {} s", ANSWER_MAX.as_secs())),
    };
    match status {
        StatusCode::NOT_FOUND => Ok(None),
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Err(format!(
            "{shown}: the management API does not let {} see it ({}); tag the user: rabbitmqctl set_user_tags {} monitoring",
            user(config),
            status.as_u16(),
            user(config)
        )),
        status if status.is_success() => serde_json::from_slice(&body)
            .map(Some)
            .map_err(|_| format!("{shown}: what answers there is not RabbitMQ's management API")),
        status => Err(format!("{shown}: answered {status}")),
    }
}

async fn exchange_with(uri: Uri, config: &config::RabbitMq) -> Result<(StatusCode, Bytes), String> {
    let password = config.password.read().map_err(|error| format!("password_file cannot be read: {error}"))?;
    let password = password.as_ref().map_or(&b"guest"[..], |password| password.expose());
    let pair = Zeroizing::new([user(config).as_bytes(), b":", password].concat());
    let basic = Zeroizing::new(format!("Basic {}", BASE64_STANDARD.encode(&*pair)));
    let path = uri.path_and_query().map_or("/", |path| path.as_str());
    let request = Request::get(path)
        .header(HOST, host_and_port(&uri))
        .header(AUTHORIZATION, basic.as_str())
        .header(ACCEPT, "application/json")
        .body(Empty::<Bytes>::new())
        .map_err(|_| "makes no HTTP request")?;
    let tls = || {
        tls::client(&tls::Files {
            section: "",
            ca: config.ca_file.as_deref(),
            certificate: config.certificate_file.as_deref(),
            private_key: config.private_key_file.as_deref(),
        })
    };
    http::exchange(&uri, request, tls, BODY_MAX).await
}

fn user(config: &config::RabbitMq) -> &str {
    config.username.as_deref().unwrap_or("guest")
}

/// Whether a topic exchange routes this key by this binding key: `*` is one word, `#` any number of them.
pub fn matches(binding: &str, key: &str) -> bool {
    fn words(binding: &[&str], key: &[&str]) -> bool {
        match (binding.split_first(), key.split_first()) {
            (None, None) => true,
            (Some((&"#", rest)), _) => {
                words(rest, key) || key.split_first().is_some_and(|(_, key)| words(binding, key))
            }
            (Some((&word, rest)), Some((&first, key))) => (word == "*" || word == first) && words(rest, key),
            _ => false,
        }
    }
    let mut binding: Vec<&str> = binding.split('.').collect();
    binding.dedup_by(|b, a| *a == "#" && *b == "#"); // Two mean what one means, and many would take very long.
    words(&binding, &key.split('.').collect::<Vec<_>>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bindings_match_as_a_topic_exchange_has_it() {
        for (binding, key, expected) in [
            ("sipsim.call.*", "sipsim.call.tags", true),
            ("sipsim.call.*", "sipsim.call", false),
            ("sipsim.call.*", "sipsim.call.tags.more", false),
            ("sipsim.#", "sipsim", true),
            ("#", "sipsim.call.tags", true),
            ("#.tags", "sipsim.call.tags", true),
            ("#.#.tags", "sipsim.call.tags", true),
            ("*.*", "sipsim.call.tags", false),
            ("sipsim.call.tags", "sipsim.call.tags", true),
            ("sipsim.call.tags", "sipsim.call.Tags", false),
            ("", "", true),
        ] {
            assert_eq!(matches(binding, key), expected, "{binding} for {key}");
        }
    }

    #[test]
    fn a_path_names_virtual_host_and_exchange() {
        assert_eq!((encoded("/"), encoded("a b")), ("%2F".to_owned(), "a%20b".to_owned()));
    }
}
