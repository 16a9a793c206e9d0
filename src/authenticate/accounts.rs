//! The accounts that may send, with the secrets that are in force; and how secrets change while the relay runs.

use std::collections::{HashMap, HashSet};
use std::error::Error;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::MissedTickBehavior;
use tracing::{info, warn};

use super::explain::Explainer;
use super::held::Held;
use super::keys::{Key, Keys};
use super::secrets::{self, NamedSecret, ReloadReport, Unusable};
use super::{Request, Verified};
use crate::clock::Timestamp;
use crate::config::{self, AccountName, Config};
use crate::metrics::Metrics;
use crate::printable;

/// How often secrets are read anew. What changed is to be in force within 10 s; this leaves time for a slow disk.
const POLL: Duration = Duration::from_secs(2);

/// A look that has taken longer is reported: new secrets are not taken up meanwhile.
const LOOK_MAX: Duration = Duration::from_secs(10);

/// Under this name secrets count in `last_reload_successful`, which certificates share.
const RELOADED: &str = "secrets";

/// All accounts, by path. Shared as `Arc<Accounts>`.
pub struct Accounts {
    by_path: HashMap<String, Arc<Account>>,
    in_order: Vec<Arc<Account>>,
    reports: Mutex<Vec<ReloadReport>>,
    /// Held by whoever reloads, so that two reloads cannot cross; apart from `reports`, which the status page reads while a disk hangs.
    reloading: Mutex<()>,
    pub(super) explainer: Explainer,
    metrics: Arc<Metrics>,
}

/// One SIPSIM integration.
pub struct Account {
    pub name: AccountName,
    pub tolerance: Duration,
    config: config::Account,
    keys: RwLock<Arc<Keys>>,
    held: Mutex<Held>,
    metrics: Arc<Metrics>,
}

/// The accounts that have no usable secret, each with why and what to do.
#[derive(Debug)]
pub struct NoSecrets {
    pub accounts: Vec<AccountName>,
    text: String,
}

/// What one look at all secrets brought.
#[derive(Default)]
pub struct Reload {
    /// All that is wrong now, whether it was before or not.
    pub reports: Vec<ReloadReport>,
    pub changed: Vec<SecretsChanged>,
    /// Refused before, proved genuine now, in order of arrival per account. Theirs is what comes next in the journal, and
    /// `webhooks_recovered_total`.
    pub recovered: Vec<Verified>,
}

/// An account whose secrets are others since the last look.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SecretsChanged {
    pub account: AccountName,
    /// The names of all that are in force now.
    pub in_force: Vec<String>,
}

impl Accounts {
    /// Every account with its secrets as they are now. What cannot be used is skipped and stands in [`Accounts::reports`]; [`Accounts::watch`]
    /// logs it.
    ///
    /// # Errors
    /// If an account has no usable secret at all; names all such.
    pub fn open(config: &Config, metrics: Arc<Metrics>) -> Result<Self, NoSecrets> {
        let (mut in_order, mut reports, mut without) = (Vec::new(), Vec::new(), Vec::new());
        for account in &config.accounts {
            let (secrets, unusable) = secrets::load(account);
            match secrets.is_empty() {
                true => without.push((account, unusable)),
                false => {
                    reports.extend(unusable);
                    in_order.push(Arc::new(Account::new(account, secrets, &metrics)));
                }
            }
        }
        if !without.is_empty() {
            return Err(NoSecrets::of(&without));
        }
        metrics.accounts.reloaded(RELOADED, reports.is_empty());
        let by_path = in_order.iter().map(|account| (account.config.path.clone(), Arc::clone(account))).collect();
        Ok(Self {
            by_path,
            in_order,
            reports: Mutex::new(reports),
            reloading: Mutex::default(),
            explainer: Explainer::default(),
            metrics,
        })
    }

    /// The account that receives at this path, without query string.
    pub fn by_path(&self, path: &str) -> Option<&Arc<Account>> {
        self.by_path.get(path)
    }

    /// In the order of the configuration.
    pub fn names(&self) -> impl Iterator<Item = AccountName> {
        self.in_order.iter().map(|account| account.name.clone())
    }

    /// Sorted by name.
    pub fn all(&self) -> &[Arc<Account>] {
        &self.in_order
    }

    /// What was wrong with secrets at the last look.
    pub fn reports(&self) -> Vec<ReloadReport> {
        lock(&self.reports).clone()
    }

    /// Reads all secrets anew and puts them in force, account by account; where nothing usable is left the last good ones stay. Held requests
    /// are tried again under what changed. Blocks on the disk.
    pub fn reload(&self) -> Reload {
        let _alone = lock(&self.reloading);
        let mut reload = Reload::default();
        for account in &self.in_order {
            account.reload(&mut reload);
        }
        self.metrics.accounts.reloaded(RELOADED, reload.reports.is_empty());
        lock(&self.reports).clone_from(&reload.reports);
        reload
    }

    /// Reloads every 2 s, logs what changes once, and hands on what is recovered, until `recovered` is closed. The first look is at once. Nobody
    /// waits here for what is handed on, which `keep_refused` bounds: secrets change also while the journal takes nothing.
    pub async fn watch(self: Arc<Self>, recovered: mpsc::UnboundedSender<Verified>) {
        let mut ticks = tokio::time::interval(POLL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut logged = HashSet::new();
        loop {
            ticks.tick().await;
            let accounts = Arc::clone(&self);
            let mut look = tokio::task::spawn_blocking(move || accounts.reload());
            let looked = match tokio::time::timeout(LOOK_MAX, &mut look).await {
                Ok(looked) => looked,
                Err(_) => {
                    warn!("the secrets cannot be read: their files do not answer; the last good ones stay in force");
                    self.metrics.accounts.reloaded(RELOADED, false);
                    look.await
                }
            };
            let reload = match looked {
                Ok(reload) => reload,
                Err(error) if error.is_cancelled() => return, // The runtime is ending.
                Err(_) => {
                    warn!("reading the secrets failed inside the relay; the last good ones stay in force");
                    continue;
                }
            };
            log(&reload, &mut logged);
            for verified in reload.recovered {
                if recovered.send(verified).is_err() {
                    return;
                }
            }
            if recovered.is_closed() {
                return;
            }
        }
    }
}

/// Logs what is new since `logged`, and what is mended.
fn log(reload: &Reload, logged: &mut HashSet<ReloadReport>) {
    for changed in &reload.changed {
        let SecretsChanged { account, in_force } = changed;
        info!(account.name = %account, "account {account}: the secrets changed; in force: {}", in_force.join(", "));
    }
    let now: HashSet<_> = reload.reports.iter().cloned().collect();
    for report in &reload.reports {
        if !logged.contains(report) {
            warn!(account.name = %report.account, "{report}");
        }
    }
    for mended in logged.difference(&now) {
        info!(account.name = %mended.account, "account {}: {} is no longer a problem", mended.account, mended.place);
    }
    *logged = now;
}

impl Account {
    pub fn name(&self) -> &AccountName {
        &self.name
    }

    fn new(config: &config::Account, secrets: Vec<NamedSecret>, metrics: &Arc<Metrics>) -> Self {
        let account = Self {
            name: config.name.clone(),
            tolerance: config.tolerance,
            config: config.clone(),
            keys: RwLock::new(Arc::new(Keys(Vec::new()))),
            held: Mutex::new(Held::new(config.keep_refused, fastrand::Rng::new())),
            metrics: Arc::clone(metrics),
        };
        account.put_in_force(secrets);
        account
    }

    pub(super) fn config(&self) -> &config::Account {
        &self.config
    }

    pub fn path(&self) -> &str {
        &self.config.path
    }

    /// The names of the secrets in force.
    pub fn secret_names(&self) -> Vec<String> {
        self.keys().labels()
    }

    /// How many refused requests wait for a secret.
    pub fn held(&self) -> usize {
        lock(&self.held).len()
    }

    pub(super) fn keys(&self) -> Arc<Keys> {
        Arc::clone(&self.keys.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Of a correctly signed request, fresh or not: a wrong clock shows here first.
    pub(super) fn note_skew(&self, signed_at: i64, now: Timestamp) {
        self.metrics
            .accounts
            .clock_skew
            .set(Timestamp::from_seconds(signed_at).as_seconds_f64() - now.as_seconds_f64());
    }

    /// Holds a request that none of `tried` signed, for the next change of secrets. Gives it back if they changed since: then it must be
    /// tried at once, as the held ones were.
    pub(super) fn keep(&self, request: Request, tried: &Arc<Keys>) -> Option<Request> {
        let mut held = lock(&self.held);
        if !Arc::ptr_eq(tried, &self.keys()) {
            return Some(request);
        }
        held.keep(request);
        None
    }

    fn reload(&self, reload: &mut Reload) {
        let keys = self.keys();
        let (secrets, reports) = secrets::reload(&self.config, |named| keys.0.iter().any(|key| key.is(named)));
        reload.reports.extend(reports);
        if keys.0.len() == secrets.len() && keys.0.iter().zip(&secrets).all(|(key, secret)| key.is(secret)) {
            return;
        }
        // Only short ones is what the start takes if there is nothing else; they do not take the place of others.
        if secrets.iter().all(|named| named.secret.is_short()) {
            let place = self.config.secrets.as_deref().map(config::shown);
            reload.reports.push(ReloadReport {
                account: self.name.clone(),
                place: place.unwrap_or_else(|| secrets::variable(&self.name)),
                unusable: Unusable::NoneLeft,
            });
            return;
        }
        self.put_in_force(secrets);
        let keys = self.keys();
        reload.changed.push(SecretsChanged { account: self.name.clone(), in_force: keys.labels() });
        // After the swap: `keep` holds nothing any more that was tried with the old ones.
        let recovered = lock(&self.held).recover(&keys);
        reload.recovered.extend(recovered.into_iter().map(|request| request.proved(&self.name)));
    }

    fn put_in_force(&self, secrets: Vec<NamedSecret>) {
        let last_used = &self.metrics.accounts.secret_last_used;
        let old = self.keys();
        for key in old.0.iter().filter(|key| !secrets.iter().any(|secret| key.is(secret))) {
            // It may be there no more, if two had the same name.
            let _ = last_used.remove_label_values(&[self.name.as_str(), &key.label]);
        }
        let keys: Vec<Key> = secrets
            .into_iter()
            .map(|secret| {
                let gauge = last_used.with_label_values(&[self.name.as_str(), &secret.label]);
                Key::new(secret, gauge)
            })
            .collect();
        let count = i64::try_from(keys.len()).unwrap_or(i64::MAX);
        self.metrics.accounts.secrets_loaded.with_label_values(&[self.name.as_str()]).set(count);
        *self.keys.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(Keys(keys));
    }
}

impl NoSecrets {
    fn of(without: &[(&config::Account, Vec<ReloadReport>)]) -> Self {
        let mut text = String::new();
        for (account, reports) in without {
            let name = &account.name;
            if !text.is_empty() {
                text.push('\n');
            }
            text.push_str(&format!("account {name} has no signing secret: put SIPSIM's into "));
            if let Some(path) = &account.secrets {
                text.push_str(&format!(
                    "{} (a file, or a folder with one file a secret), or into ",
                    config::shown(path)
                ));
            }
            text.push_str(&format!("the environment variable {}", secrets::variable(name)));
            for report in reports {
                text.push_str(&format!("\n  {}", printable::one_line(&report.to_string())));
            }
        }
        Self { accounts: without.iter().map(|(account, _)| account.name.clone()).collect(), text }
    }
}

impl fmt::Display for NoSecrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl Error for NoSecrets {}

/// What these locks guard is whole between any two statements, so that a panic elsewhere leaves nothing to fear.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
