//! What the writer remembers of the file, so that it need not ask: rows of resources, and recent aliases.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use foldhash::fast::RandomState;
use rusqlite::{params, Connection, OptionalExtension};

use super::encode;
use crate::span::{Resource, TraceAlias, TraceId};

/// Resources whose row is remembered.
const RESOURCES_MAX: usize = 4_096;
/// Recent aliases that are applied to spans that come late.
pub(super) const ALIASES_MAX: usize = 16_384;
/// Aliases of aliases that are followed.
const CHAIN_MAX: usize = 16;

/// Rows of resources.
#[derive(Default)]
pub(super) struct Resources {
    /// By address.
    known: HashMap<usize, Known, RandomState>,
}

struct Known {
    id: i64,
    last_bucket: i64,
    /// Keeps the address this resource's.
    _held: Arc<Resource>,
}

impl Resources {
    /// The id of this resource's row, which is made if need be and marked as used in `bucket`.
    pub(super) fn id(
        &mut self,
        connection: &Connection,
        resource: &Arc<Resource>,
        bucket: i64,
    ) -> rusqlite::Result<i64> {
        let address = Arc::as_ptr(resource).addr();
        if let Some(known) = self.known.get(&address) {
            if known.last_bucket == bucket {
                return Ok(known.id);
            }
        }
        if self.known.len() >= RESOURCES_MAX {
            self.known.clear();
        }
        let id = find_or_insert(connection, resource, bucket)?;
        self.known.insert(
            address,
            Known {
                id,
                last_bucket: bucket,
                _held: Arc::clone(resource),
            },
        );
        Ok(id)
    }

    /// Forgets everything, after a transaction that failed.
    pub(super) fn clear(&mut self) {
        self.known.clear();
    }
}

fn find_or_insert(connection: &Connection, resource: &Resource, bucket: i64) -> rusqlite::Result<i64> {
    let mut body = Vec::with_capacity(512);
    encode::resource(resource, &mut body);
    let hash = fnv1a(&body) as i64;
    let found: Option<i64> = connection
        .prepare_cached("SELECT id FROM resource WHERE hash = ?1 AND body = ?2")?
        .query_row(params![hash, &body], |row| row.get(0))
        .optional()?;
    if let Some(id) = found {
        connection
            .prepare_cached("UPDATE resource SET last_bucket = ?2 WHERE id = ?1")?
            .execute([id, bucket])?;
        return Ok(id);
    }
    connection
        .prepare_cached("INSERT INTO resource(hash, last_bucket, service, body) VALUES (?1, ?2, ?3, ?4)")?
        .execute(params![hash, bucket, &*resource.service_name, &body])?;
    Ok(connection.last_insert_rowid())
}

/// FNV-1a, to find a resource by content; equality decides.
fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

/// The last aliases, forgotten first in, first out.
#[derive(Default)]
pub(super) struct RecentAliases {
    canonical: HashMap<TraceId, TraceId, RandomState>,
    order: VecDeque<TraceId>,
}

impl RecentAliases {
    pub(super) fn insert(&mut self, alias: TraceAlias) {
        if self.canonical.insert(alias.alias, alias.canonical).is_none() {
            self.order.push_back(alias.alias);
        }
        if self.order.len() > ALIASES_MAX {
            if let Some(oldest) = self.order.pop_front() {
                self.canonical.remove(&oldest);
            }
        }
    }

    /// What the id stands for now; itself, usually.
    pub(super) fn resolve(&self, mut id: TraceId) -> TraceId {
        if self.canonical.is_empty() {
            return id;
        }
        for _ in 0..CHAIN_MAX {
            match self.canonical.get(&id) {
                Some(next) if *next != id => id = *next,
                _ => break,
            }
        }
        id
    }
}
