//! Logging in to a broker: PLAIN, SCRAM (RFC 5802, as Kafka has it) and OAUTHBEARER (RFC 7628).

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use hmac::{Hmac, KeyInit, Mac};
use sha2::{Digest, Sha256, Sha512};
use zeroize::Zeroizing;

use super::wire::{Connection, Reader, Writer};
use crate::config::KafkaSecurity;
use crate::publish::kafka::oauth;

const SASL_HANDSHAKE: i16 = 17;
const SASL_AUTHENTICATE: i16 = 36;
/// Rounds that a broker may ask for. Kafka's default is 4,096; more than this would be to keep us busy.
const ROUNDS_MAX: u32 = 1_000_000;

/// Logs in as the configuration says, with the password as its file is now. The error holds no secret.
pub async fn log_in(connection: &mut Connection, security: &KafkaSecurity) -> Result<(), String> {
    let mechanism = security.mechanism.as_deref().unwrap_or("PLAIN");
    let mut body = Writer::default();
    body.text(mechanism);
    let answer = connection.ask(SASL_HANDSHAKE, 1, body).await?;
    let mut answer = Reader::new(&answer);
    if answer.i16()? != 0 {
        let mut offered = Vec::new();
        for _ in 0..answer.count()? {
            offered.push(answer.text()?);
        }
        let at = &connection.at;
        return Err(format!(
            "{at}: the broker has no `security.mechanism` {mechanism}; it offers {}",
            offered.join(", ")
        ));
    }
    if mechanism == "OAUTHBEARER" {
        let asked = security.clone();
        let fetched = tokio::task::spawn_blocking(move || oauth::fetch(&asked)).await;
        let token = fetched.map_err(|error| error.to_string())??;
        let first = Zeroizing::new(format!("n,,\u{1}auth=Bearer {}\u{1}\u{1}", token.access_token));
        return send(connection, first.as_bytes()).await.map(drop);
    }
    let user = security.username.as_deref().unwrap_or_default();
    let password = security
        .password
        .read()
        .map_err(|error| format!("the file of security.password_file cannot be read: {error}"))?
        .ok_or("security.password_file is missing, which this mechanism needs")?;
    match mechanism {
        "SCRAM-SHA-256" => scram::<Sha256>(connection, user, password.expose()).await,
        "SCRAM-SHA-512" => scram::<Sha512>(connection, user, password.expose()).await,
        _ => {
            let first = Zeroizing::new([b"\0", user.as_bytes(), b"\0", password.expose()].concat());
            send(connection, &first).await.map(drop)
        }
    }
}

/// One step; what the broker answers to it.
async fn send(connection: &mut Connection, bytes: &[u8]) -> Result<Vec<u8>, String> {
    let mut body = Writer::default();
    body.bytes(bytes);
    let answer = connection.ask(SASL_AUTHENTICATE, 0, body).await?;
    let mut answer = Reader::new(&answer);
    let (code, _words) = (answer.i16()?, answer.text_or_null()?);
    if code != 0 {
        // The broker's words are left out: some repeat what they were sent.
        return Err(format!(
            "{}: the broker does not let us in: check `security.mechanism`, and name and password or secret (code {code})",
            connection.at
        ));
    }
    Ok(answer.bytes()?.to_vec())
}

async fn scram<D: Hash>(connection: &mut Connection, user: &str, password: &[u8]) -> Result<(), String> {
    let mut random = [0; 18];
    getrandom::fill(&mut random).map_err(|error| format!("no random bytes: {error}"))?;
    let nonce = BASE64_STANDARD.encode(random);
    let first = format!("n={},r={nonce}", user.replace('=', "=3D").replace(',', "=2C"));
    let challenge = send(connection, format!("n,,{first}").as_bytes()).await?;
    let challenge = String::from_utf8(challenge).map_err(|_| no_scram())?;
    let (last, signature) = proof::<D>(&first, &nonce, &challenge, password).ok_or_else(no_scram)?;
    let verifier = send(connection, last.as_bytes()).await?;
    // Whoever knows the password only by what we sent could not have made this one.
    if verifier != format!("v={signature}").as_bytes() {
        return Err(format!("{}: what answers there does not know the password itself", connection.at));
    }
    Ok(())
}

fn no_scram() -> String {
    "the broker's part of SCRAM cannot be read".to_owned()
}

/// The client's last message, and the signature that the broker has to answer with.
fn proof<D: Hash>(first: &str, nonce: &str, challenge: &str, password: &[u8]) -> Option<(String, String)> {
    let part = |name: &str| challenge.split(',').find_map(|part| part.strip_prefix(name));
    let (both, salt, rounds) = (part("r=")?, part("s=")?, part("i=")?.parse().ok()?);
    if !both.starts_with(nonce) || !(1..=ROUNDS_MAX).contains(&rounds) {
        return None;
    }
    let salted = salted::<D>(password, &BASE64_STANDARD.decode(salt).ok()?, rounds);
    let key = D::hmac(&salted, b"Client Key");
    let without_proof = format!("c=biws,r={both}");
    let all = format!("{first},{challenge},{without_proof}");
    let signature = D::hmac(&D::hash(&key), all.as_bytes());
    let proof: Vec<u8> = key.iter().zip(&signature).map(|(a, b)| a ^ b).collect();
    let server = D::hmac(&D::hmac(&salted, b"Server Key"), all.as_bytes());
    Some((format!("{without_proof},p={}", BASE64_STANDARD.encode(proof)), BASE64_STANDARD.encode(server)))
}

/// PBKDF2 with one block.
fn salted<D: Hash>(password: &[u8], salt: &[u8], rounds: u32) -> Zeroizing<Vec<u8>> {
    let mut last = D::hmac(password, &[salt, &[0, 0, 0, 1]].concat());
    let mut salted = Zeroizing::new(last.clone());
    for _ in 1..rounds {
        last = D::hmac(password, &last);
        salted.iter_mut().zip(&last).for_each(|(a, b)| *a ^= b);
    }
    salted
}

trait Hash {
    fn hash(bytes: &[u8]) -> Vec<u8>;
    fn hmac(key: &[u8], bytes: &[u8]) -> Vec<u8>;
}

macro_rules! hash {
    ($digest:ty) => {
        impl Hash for $digest {
            fn hash(bytes: &[u8]) -> Vec<u8> {
                <$digest>::digest(bytes).to_vec()
            }

            fn hmac(key: &[u8], bytes: &[u8]) -> Vec<u8> {
                let mut mac = Hmac::<$digest>::new_from_slice(key).expect("HMAC takes a key of any length");
                mac.update(bytes);
                mac.finalize().into_bytes().to_vec()
            }
        }
    };
}
hash!(Sha256);
hash!(Sha512);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scram_is_that_of_the_rfc() {
        // RFC 7677 §3.
        let challenge = "r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096";
        let (last, signature) =
            proof::<Sha256>("n=user,r=rOprNGfwEbeRWgbNEkqO", "rOprNGfwEbeRWgbNEkqO", challenge, b"pencil").unwrap();
        assert!(last.ends_with(",p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ="), "{last}");
        assert_eq!(signature, "6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=");
        assert!(proof::<Sha256>("n=user,r=x", "another", challenge, b"pencil").is_none(), "somebody else's challenge");
    }
}
