//! What librdkafka calls back, on our thread, from within `poll`.

use std::error::Error;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};
use std::thread;
use std::time::Duration;

use rdkafka::ClientContext;
use rdkafka::client::OAuthToken;
use rdkafka::config::{FromClientConfigAndContext, RDKafkaLogLevel};
use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};
use rdkafka::message::Message;
use rdkafka::producer::{DeliveryResult, Producer as _, ProducerContext};
use tracing::warn;

use super::health::{Breaks, Brokers, Statistics, Stranding};
use super::{Producer, Role, Shared, faults, health, oauth, settings};
use crate::clock;
use crate::config::{self, KafkaSecurity};
use crate::publish::aside::Aside;
use crate::publish::{Disposition, Place, PublishError, Report, tls};

/// A producer that reports to `shared`, with passwords and certificates as their files are now.
pub(super) fn make(config: &config::Kafka, shared: &Arc<Shared>, role: Role) -> Result<Arc<Producer>, String> {
    let settings = settings::producer(config)?;
    let context = Context {
        security: config.security.clone(),
        shared: Arc::clone(shared),
        role,
        failed: AtomicBool::new(false),
        stranding: Stranding::default(),
        breaks: Mutex::default(),
        calls: AtomicU64::new(0),
        token: Mutex::default(),
        producer: OnceLock::new(),
    };
    let producer = Producer::from_config_and_context(&settings, context).map_err(|error| settings::refusal(&error))?;
    let producer = Arc::new(producer);
    // Nobody else sets it, and without it a purged record is called withdrawn where it should be called fatal.
    let _ = producer.client().context().producer.set(Arc::downgrade(&producer));
    Ok(producer)
}

/// One for each producer.
pub(super) struct Context {
    security: KafkaSecurity,
    shared: Arc<Shared>,
    role: Role,
    /// The producer failed for good.
    pub failed: AtomicBool,
    /// Whether it has any broker left.
    pub stranding: Stranding,
    /// Which connections have broken.
    breaks: Mutex<Breaks>,
    /// Counts what librdkafka calls back, which tells whether a look into its queue found anything.
    pub calls: AtomicU64,
    token: Mutex<Aside<Result<oauth::Token, String>>>,
    /// The producer whose context this is.
    producer: OnceLock<Weak<Producer>>,
}

impl Context {
    /// What a failure means, given how the producer ended. Where it failed for its own reasons all its records failed with it; where it
    /// was stopped because one was refused, the others are only taken back.
    fn judge(&self, error: &KafkaError) -> PublishError {
        let meaning = faults::meaning(error);
        match self.fatal_error() {
            Some(Code::GaplessGuarantee) if meaning == PublishError::Fatal => PublishError::Withdrawn,
            None | Some(Code::GaplessGuarantee) => meaning,
            Some(_) if meaning.disposition() == Disposition::Retry => PublishError::Fatal,
            Some(_) => meaning,
        }
    }

    /// Where TLS failed and librdkafka does not say why, a handshake of our own does, and is waited for: some seconds at most.
    fn tell(&self, change: Report) {
        let Some(address) = health::unexplained_tls(&change).map(str::to_owned) else {
            return self.shared.report(change);
        };
        let (security, shared) = (self.security.clone(), Arc::clone(&self.shared));
        let try_and_tell = move || {
            let files = tls::Files {
                section: "security.",
                ca: security.ca_file.as_deref(),
                certificate: security.certificate_file.as_deref(),
                private_key: security.private_key_file.as_deref(),
            };
            let change = match (tls::try_handshake(&address, &files), change) {
                (Some(why), Report::Lost { reason, .. }) => {
                    Report::Lost { reason, detail: format!("TLS with the broker failed: {address}: {why}") }
                }
                (_, change) => change,
            };
            let state = shared.state();
            // With the state held, so that nobody says in between that it is connected.
            if !state.health.is_connected() {
                shared.report(change);
            }
        };
        // One for each outage, since each kind of trouble is told once.
        if thread::Builder::new().name("kafka-tls".into()).spawn(try_and_tell).is_err() {
            warn!("TLS with a Kafka broker failed, and no thread could be started to find out why");
        }
    }

    /// Why the producer failed for good, if it did.
    fn fatal_error(&self) -> Option<Code> {
        let producer = self.producer.get().and_then(Weak::upgrade)?;
        producer.client().fatal_error().map(|(code, _)| code)
    }
}

impl ProducerContext for Context {
    type DeliveryOpaque = usize;

    fn delivery(&self, result: &DeliveryResult<'_>, sequence: usize) {
        self.calls.fetch_add(1, Ordering::Relaxed);
        let sequence = sequence as u64;
        match result {
            // The offset is -1 where a broker had the record already and no longer knew where.
            Ok(message) => {
                let place = Place::Kafka { partition: message.partition(), offset: message.offset() };
                self.shared.delivered(self.role, sequence, message.topic(), place);
            }
            Err((error, message)) => {
                let refused = self.fatal_error() == Some(Code::GaplessGuarantee);
                self.shared.failed(self.role, sequence, message.topic(), self.judge(error), refused);
            }
        }
    }
}

impl ClientContext for Context {
    const ENABLE_REFRESH_OAUTH_TOKEN: bool = true;

    /// Asked for by librdkafka before it connects and well before a token ends.
    fn generate_oauth_token(&self, _: Option<&str>) -> Result<OAuthToken, Box<dyn Error>> {
        let security = self.security.clone();
        let mut under_way = self.token.lock().unwrap_or_else(PoisonError::into_inner);
        // The producer is not polled meanwhile, so a file that hangs may cost this once.
        let max = if under_way.is_under_way() { Duration::ZERO } else { oauth::FETCH_MAX };
        let fetched = under_way.ask(max, move || oauth::fetch(&security));
        let token = fetched.ok_or("fetching a token did not end in time, or could not begin: is the file of security.client_secret_file or security.ca_file on a mount that hangs?")??;
        Ok(OAuthToken {
            token: token.access_token,
            // Only for librdkafka's messages; the broker takes the name from the token.
            principal_name: self.security.client_id.clone().unwrap_or_default(),
            lifetime_ms: clock::now().plus(token.lifetime).as_micros() / 1000,
        })
    }

    /// Dropped: libraries' lines never reach our log as they are, and what matters in them comes as an error or a report too.
    fn log(&self, _level: RDKafkaLogLevel, _facility: &str, _line: &str) {}

    fn stats_raw(&self, statistics: &[u8]) {
        self.calls.fetch_add(1, Ordering::Relaxed);
        let Some(statistics) = Statistics::read(statistics) else { return };
        let brokers = statistics.state();
        self.stranding.seen(brokers);
        if self.breaks.lock().unwrap_or_else(PoisonError::into_inner).any(&statistics) {
            self.shared.broken(self.role);
        }
        if self.role != Role::Main {
            return;
        }
        let change = self.shared.state().health.seen(brokers == Brokers::Up);
        if let Some(change) = change {
            self.tell(change);
        }
    }

    /// rdkafka calls this twice for each error of a producer, which changes nothing.
    fn error(&self, error: KafkaError, words: &str) {
        self.calls.fetch_add(1, Ordering::Relaxed);
        let Some(code) = error.rdkafka_error_code() else { return };
        if self.fatal_error().is_some() {
            // Told once the thread has seen it; librdkafka gives the code of the cause here, not one of its own.
            self.failed.store(true, Ordering::Relaxed);
            return;
        }
        if self.role != Role::Main {
            return;
        }
        let change = self.shared.state().health.trouble(code, words);
        if let Some(change) = change {
            self.tell(change);
        }
    }
}
