//! The relay with TLS of its own, beside the same without.

use std::sync::Arc;

use tokio_rustls::TlsConnector;

use crate::load;
use crate::relay::{self, Relay, Settings};
use crate::report::Group;
use crate::stage::{Measured, Stage, away};

pub fn measure(stage: &mut Stage) -> Result<Vec<Group>, String> {
    let mut group = Group::new("TLS in the relay".into(), "plain", "requests/s");
    let load = stage.usual();
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).map_err(|error| error.to_string())?;
    let (certificate, key) = (stage.folder().join("tls.crt"), stage.folder().join("tls.key"));
    std::fs::write(&certificate, made.cert.pem()).map_err(|error| error.to_string())?;
    std::fs::write(&key, made.signing_key.serialize_pem()).map_err(|error| error.to_string())?;
    let mut roots = rustls::RootCertStore::empty();
    roots.add(made.cert.der().clone()).map_err(|error| error.to_string())?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let client = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let client = client.map_err(|error| error.to_string())?.with_root_certificates(roots).with_no_client_auth();
    let connector = TlsConnector::from(Arc::new(client));
    let ingress = format!(
        "[ingress.tls]\ncertificate_file = \"{}\"\nprivate_key_file = \"{}\"\n",
        certificate.display(),
        key.display()
    );
    let home = stage.folder().join("tls");
    for run in 1..=stage.arguments.runs {
        eprintln!("TLS, run {run}");
        let plain = stage
            .relay(relay::PROGRAM.as_ref(), &away(), |relay| load::run(relay.public, relay.running.pid(), load))?;
        plain.add_to(&mut group, "plain")?;
        let settings = Settings { outputs: &away(), journal: "", ingress: &ingress };
        let relay = Relay::start(relay::PROGRAM.as_ref(), &relay::configure_all(&home, &settings)?)?;
        let pid = relay.running.pid();
        let outcome = load::run_tls(relay.public, pid, load, connector.clone())?;
        Measured::new(outcome, pid, None).add_to(&mut group, "TLS 1.3, both ends on this machine")?;
        relay.running.stop();
        let _ = std::fs::remove_dir_all(&home);
    }
    group.finish();
    Ok(vec![group])
}
