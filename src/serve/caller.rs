//! Whose a request is.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use axum::http::{HeaderMap, header};

use super::keys::Key;

/// Who asks: owners get equal shares of the engine.
#[derive(Clone, Debug)]
pub(super) struct Caller {
    /// A number below 2^63, the same for all requests of one caller.
    pub owner: u64,
    /// The key that was shown.
    pub key: Option<Arc<Key>>,
}

impl Caller {
    /// The caller at an address.
    pub fn at(address: IpAddr) -> Self {
        Caller { owner: owner(address), key: None }
    }

    /// The caller with a key, from wherever.
    pub fn with(key: Arc<Key>) -> Self {
        Caller { owner: owner(&key.name), key: Some(key) }
    }
}

fn owner(who: impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    who.hash(&mut hasher);
    hasher.finish() >> 1
}

/// The key that a header shows: `Bearer`, or as DeepL's clients do it.
pub(super) fn shown_key(headers: &HeaderMap) -> Option<&str> {
    let value = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, key) = value.split_once(' ')?;
    let is_known = ["bearer", "deepl-auth-key"].iter().any(|known| scheme.eq_ignore_ascii_case(known));
    is_known.then_some(key.trim())
}

/// The address that a request comes from: behind a proxy that is trusted, the last one that X-Forwarded-For names, since any before
/// it may be made up.
pub(super) fn address(headers: &HeaderMap, peer: SocketAddr, trust_proxy: bool) -> IpAddr {
    let forwarded = headers.get_all("x-forwarded-for").iter().next_back();
    let forwarded = forwarded.filter(|_| trust_proxy).and_then(|value| value.to_str().ok());
    let last = forwarded.and_then(|list| list.rsplit(',').next()).map(str::trim);
    // Some proxies add the port.
    let parsed = last.and_then(|text| text.parse().ok().or_else(|| Some(text.parse::<SocketAddr>().ok()?.ip())));
    parsed.unwrap_or(peer.ip()).to_canonical()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_trusted_proxy_says_where_a_request_comes_from() {
        let peer: SocketAddr = "10.0.0.1:5".parse().expect("an address");
        let from = |value: &str, trust| {
            let mut headers = HeaderMap::new();
            headers.insert("x-forwarded-for", value.parse().expect("a value"));
            address(&headers, peer, trust).to_string()
        };
        assert_eq!(from("1.2.3.4", false), "10.0.0.1");
        assert_eq!(from("9.9.9.9, 1.2.3.4", true), "1.2.3.4");
        assert_eq!(from("1.2.3.4:80", true), "1.2.3.4");
        assert_eq!(from("::ffff:1.2.3.4", true), "1.2.3.4");
        assert_eq!(from("nobody", true), "10.0.0.1");
    }
}
