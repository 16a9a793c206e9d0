//! URLs of brokers and of what stands beside them. None is ever repeated in a message: a password may be in it.

use super::reader::Parsed;

/// What of an AMQP URL matters to other keys.
pub(super) struct Amqp {
    pub tls: bool,
    pub username: Option<String>,
}

/// `amqp://host:port/vhost` or `amqps://…`, without password and query.
pub(super) fn amqp(text: &str, instead: &str) -> Parsed<Amqp> {
    const FORM: &str = r#"write amqp://host:port/vhost, such as "amqp://127.0.0.1:5672/%2f", or amqps:// for TLS"#;
    let (tls, rest) = match text.split_once("://") {
        Some(("amqp", rest)) => (false, rest),
        Some(("amqps", rest)) => (true, rest),
        Some(_) => return Err(format!("is no URL of RabbitMQ: it begins with neither amqp:// nor amqps://; {FORM}")),
        None => return Err(format!("is no URL; {FORM}")),
    };
    let (authority, vhost) = match rest.split_once('/') {
        Some((authority, vhost)) => (authority, Some(vhost)),
        None => (rest, None),
    };
    let (user, host) = match authority.rsplit_once('@') {
        Some((user, host)) => (Some(user), host),
        None => (None, authority),
    };
    if user.is_some_and(|user| user.contains(':')) {
        return Err(format!("holds a password, which lists of processes and logs would show; use {instead}"));
    }
    if text.contains(['?', '#']) {
        return Err(
            "holds a query; heartbeat and timeouts are set by the relay, so leave out what follows `?`".to_owned()
        );
    }
    // The client would take either for `localhost` without a word.
    if host.starts_with('[') {
        return Err("names an IPv6 address, which the AMQP client cannot take; name the host instead".to_owned());
    }
    if host.is_empty() || host.starts_with(':') {
        return Err(format!("names no host; {FORM}"));
    }
    match vhost {
        Some("") => {
            return Err(
                "ends with `/`, which means a virtual host without name; for the default one write `/%2f`".to_owned()
            );
        }
        Some(vhost) if vhost.contains('/') => {
            return Err("holds a further `/`; one within a virtual host's name is written `%2f`".to_owned());
        }
        _ => {}
    }
    // The very parser that the connection will use.
    let url: lapin::uri::AMQPUri = text.parse().map_err(|error| format!("is no URL of RabbitMQ ({error}); {FORM}"))?;
    // The name goes to the resolver as it stands, which knows internationalised names by their ASCII form alone.
    if !url.authority.host.is_ascii() {
        return Err(
            "names a host with letters beyond ASCII; write the name's ASCII form, which begins with `xn--`".to_owned()
        );
    }
    let username = user.filter(|user| !user.is_empty()).map(|_| url.authority.userinfo.username);
    Ok(Amqp { tls, username })
}

/// `http://…` or `https://…` with a host and without a password.
pub(super) fn http(text: &str) -> Parsed<String> {
    let rest = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://"));
    let Some(rest) = rest else {
        return Err("is no URL; it begins with https:// or http://".to_owned());
    };
    let authority = rest.split(['/', '?', '#']).next().unwrap_or("");
    if authority.contains('@') {
        Err("holds a username or password; leave them out, the output's own are used".to_owned())
    } else if authority.is_empty() || authority.starts_with(':') {
        Err("names no host".to_owned())
    } else if !text.bytes().all(|b| b.is_ascii_graphic()) {
        Err("holds spaces or letters beyond ASCII; percent-encode them".to_owned())
    } else {
        Ok(text.to_owned())
    }
}
