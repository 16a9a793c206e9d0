//! Where webhooks are posted to.

use hyper::Uri;

/// A webhook's URL, taken apart: it has a scheme, a host and a path of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    pub tls: bool,
    /// A name or an address; IPv6 without its brackets.
    pub host: String,
    pub port: u16,
    /// What the header `Host` says: the host as written, with the port if one was.
    pub authority: String,
    /// Path and query.
    pub path: String,
}

impl Target {
    /// Takes only a whole URL, as SIPSIM's dashboard would; the error says which part is missing.
    pub fn parse(url: &str) -> Result<Self, String> {
        const EXAMPLE: &str = "a whole URL is like http://127.0.0.1:8080/webhooks/sipsim";
        let (tls, rest) = match url.split_once("://") {
            Some((scheme, rest)) if scheme.eq_ignore_ascii_case("https") => (true, rest),
            Some((scheme, rest)) if scheme.eq_ignore_ascii_case("http") => (false, rest),
            _ => return Err(format!("it must begin with http:// or https://; {EXAMPLE}")),
        };
        if !rest.contains('/') {
            return Err(format!("it has no path; {EXAMPLE}"));
        }
        if url.contains('#') {
            return Err("a fragment (#…) is never sent to a server; leave it out".to_owned());
        }
        if rest.starts_with(['/', ':']) {
            return Err(format!("it has no host; {EXAMPLE}"));
        }
        let uri: Uri = url.parse().map_err(|error| format!("{error}; {EXAMPLE}"))?;
        let authority = uri.authority().filter(|authority| !authority.host().is_empty());
        let authority = authority.ok_or_else(|| format!("it has no host; {EXAMPLE}"))?;
        if authority.as_str().contains('@') {
            return Err("user names and passwords in the URL are not sent; leave them out".to_owned());
        }
        let written = &authority.as_str()[authority.host().len()..]; // `Uri::port` takes a bad port for none.
        let port = match written.strip_prefix(':').map(str::parse) {
            None if tls => 443,
            None => 80,
            Some(Ok(port)) if port != 0 => port,
            Some(_) => return Err(format!("its port is not a number from 1 to 65535; {EXAMPLE}")),
        };
        let host = authority.host().trim_start_matches('[').trim_end_matches(']').to_owned();
        let path = uri.path_and_query().map_or("/", |path| path.as_str()).to_owned();
        Ok(Self { tls, host, port, authority: authority.as_str().to_owned(), path })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_is_taken_apart() {
        let target = Target::parse("https://Hooks.example.com/webhooks/sipsim?a=b").unwrap();
        assert_eq!((target.tls, target.host.as_str(), target.port), (true, "Hooks.example.com", 443));
        assert_eq!((target.authority.as_str(), target.path.as_str()), ("Hooks.example.com", "/webhooks/sipsim?a=b"));
        let target = Target::parse("http://[::1]:8080/w").unwrap();
        assert_eq!((target.tls, target.host.as_str(), target.port), (false, "::1", 8080));
        assert_eq!(target.authority, "[::1]:8080");
    }

    #[test]
    fn what_is_wrong_with_a_url_is_said() {
        for (url, wrong) in [
            ("127.0.0.1:8080/webhooks/sipsim", "must begin with http"),
            ("ftp://h/p", "must begin with http"),
            ("http://127.0.0.1:8080", "no path"),
            ("http:///p", "no host"),
            ("http://h/p#f", "fragment"),
            ("http://u:p@h/p", "user names"),
            ("http://h:x/p", "port"),
            ("http://h:65536/p", "port"),
            ("http://h/a b", "invalid"),
        ] {
            let error = Target::parse(url).expect_err(url);
            assert!(error.contains(wrong), "{url}: {error}");
        }
    }
}
