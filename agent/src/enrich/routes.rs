//! From a path to its route and span name: templating, the cardinality guard, and a cache in front of both.
//!
//! The cache is keyed by a keyed 64-bit hash of the path and never by the path: what a client sent is not kept in the
//! agent's memory (docs/templating.md).

use std::collections::HashMap;
use std::hash::{BuildHasher, Hasher};
use std::sync::{Arc, OnceLock};

use foldhash::fast::RandomState;

use super::method::{span_method, METHODS};
use super::recent::Recent;
use super::template::{Segment, Splitter, REST};

/// A templated path, shared by all spans that bear it.
#[derive(Debug)]
pub(super) struct Route {
    /// `/users/{id}`.
    pub(super) path: Arc<str>,
    /// `GET /users/{id}`, by the method's place in [`METHODS`].
    names: [OnceLock<Arc<str>>; METHODS.len()],
}

impl Route {
    fn new(path: &str) -> Self {
        Self {
            path: path.into(),
            names: std::array::from_fn(|_| OnceLock::new()),
        }
    }

    /// The span's name.
    pub(super) fn name(&self, method: usize) -> Arc<str> {
        let make = || format!("{} {}", span_method(method), self.path).into();
        self.names
            .get(method)
            .map_or_else(make, |name| Arc::clone(name.get_or_init(make)))
    }
}

/// Bounds of the guard.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds {
    /// Names at one position; with one more, those seen rarely and all new ones become `{*}`.
    pub(super) names: usize,
    /// Seen so often, a name stays when its position overflows.
    pub(super) established: u32,
    /// Positions of one service's paths; beyond, a new name is `{*}`.
    pub(super) positions: usize,
    /// Services (and sides) that are told apart.
    pub(super) services: usize,
    /// Paths and routes in the caches, each.
    pub(super) cached: usize,
}

impl Default for Bounds {
    fn default() -> Self {
        Self {
            names: 64,
            established: 16,
            positions: 2048,
            services: 512,
            cached: 4096,
        }
    }
}

struct Cached {
    route: Arc<Route>,
    hits: u32,
}

/// All services' routes.
pub(super) struct Routes {
    bounds: Bounds,
    hasher: RandomState,
    paths: Recent<u64, Cached>,
    shared: Recent<u64, Arc<Route>>,
    services: HashMap<u64, Guard, RandomState>,
    splitter: Splitter,
    text: String,
}

impl Routes {
    pub(super) fn new(bounds: Bounds) -> Self {
        Self {
            bounds,
            hasher: RandomState::default(),
            paths: Recent::new(bounds.cached),
            shared: Recent::new(bounds.cached),
            services: HashMap::default(),
            splitter: Splitter::default(),
            text: String::new(),
        }
    }

    /// The route of a path that a service got (or, on the client side, asked for).
    pub(super) fn route(&mut self, service: &str, side: u8, raw: &[u8], cut: bool) -> Arc<Route> {
        let mut hasher = self.hasher.build_hasher();
        hasher.write(service.as_bytes());
        hasher.write_u16(u16::from_le_bytes([side, cut.into()]));
        let scope = hasher.finish();
        hasher.write(raw);
        let key = hasher.finish();
        if let Some(cached) = self.paths.get(key) {
            cached.hits = cached.hits.saturating_add(1);
            let route = Arc::clone(&cached.route);
            if cached.hits == self.bounds.established {
                // Hits do not pass the guard: it is told once what it did not see.
                self.judge(scope, raw, cut, self.bounds.established);
            }
            return route;
        }
        self.judge(scope, raw, cut, 1);
        let route = self.share();
        self.paths.insert(
            key,
            Cached {
                route: Arc::clone(&route),
                hits: 1,
            },
        );
        route
    }

    /// Writes the template into `text`.
    fn judge(&mut self, scope: u64, raw: &[u8], cut: bool, times: u32) {
        if self.services.len() >= self.bounds.services && !self.services.contains_key(&scope) {
            self.services.clear();
        }
        let guard = self.services.entry(scope).or_default();
        self.text.clear();
        match self.splitter.split(raw, cut) {
            Some(segments) => {
                if guard.template(segments, times, &self.bounds, &mut self.text) {
                    // Paths judged before may hold names that just became `{*}`.
                    self.paths.clear();
                }
            }
            None => self.text.push('*'),
        }
        self.splitter.wipe();
    }

    /// The one [`Route`] of the template in `text`.
    fn share(&mut self) -> Arc<Route> {
        let key = self.hasher.hash_one(self.text.as_str());
        if let Some(route) = self.shared.get(key).filter(|route| *route.path == *self.text) {
            return Arc::clone(route);
        }
        Arc::clone(self.shared.insert(key, Arc::new(Route::new(&self.text))))
    }
}

/// The names seen at every position of one service's paths.
#[derive(Default)]
struct Guard {
    root: Position,
    positions: usize,
}

#[derive(Default)]
struct Position {
    names: HashMap<Box<str>, Position, RandomState>,
    /// Behind a placeholder of any kind: one position for all of them.
    placeholder: Option<Box<Position>>,
    seen: u32,
    overflowed: bool,
}

impl Guard {
    /// Appends the template; true if a position overflowed just now.
    fn template<'a>(
        &mut self,
        segments: impl Iterator<Item = Segment<'a>>,
        times: u32,
        bounds: &Bounds,
        out: &mut String,
    ) -> bool {
        let mut overflow = false;
        let mut position = &mut self.root;
        for segment in segments {
            let (segment, next, overflowed) = position.step(segment, times, bounds, &mut self.positions);
            segment.write(out);
            overflow |= overflowed;
            position = next;
        }
        overflow
    }
}

impl Position {
    /// One segment on: what it becomes, where it leads, and whether this position overflowed just now.
    fn step<'a>(
        &mut self,
        segment: Segment<'a>,
        times: u32,
        bounds: &Bounds,
        positions: &mut usize,
    ) -> (Segment<'a>, &mut Self, bool) {
        let mut overflowed = false;
        if let Segment::Literal(name) = segment {
            if !self.names.contains_key(name) {
                overflowed = self.admit(name, bounds, positions);
            }
            if let Some(child) = self.names.get_mut(name) {
                child.seen = child.seen.saturating_add(times);
                return (segment, child, overflowed);
            }
        }
        let segment = match segment {
            Segment::Literal(_) => Segment::Placeholder(REST, ""),
            Segment::Placeholder(..) => segment,
        };
        (segment, self.placeholder.get_or_insert_with(Box::default), overflowed)
    }

    /// Makes room for a new name, if there is; true if that made the position overflow.
    fn admit(&mut self, name: &str, bounds: &Bounds, positions: &mut usize) -> bool {
        if !self.overflowed && self.names.len() >= bounds.names {
            self.overflowed = true;
            self.names.retain(|_, child| {
                let stays = child.seen >= bounds.established;
                if !stays {
                    *positions = positions.saturating_sub(child.size());
                }
                stays
            });
            return true;
        }
        if !self.overflowed && *positions < bounds.positions {
            *positions += 1;
            self.names.insert(name.into(), Self::default());
        }
        false
    }

    /// Names at and below this one.
    fn size(&self) -> usize {
        let below = self.names.values().chain(self.placeholder.as_deref()).map(Self::size);
        1 + below.sum::<usize>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SERVER: u8 = 1;

    fn routes(bounds: Bounds) -> Routes {
        Routes::new(bounds)
    }

    impl Routes {
        fn text(&mut self, service: &str, path: &str) -> String {
            self.route(service, SERVER, path.as_bytes(), false).path.to_string()
        }
    }

    #[test]
    fn equal_templates_are_one_route() {
        let mut routes = routes(Bounds::default());
        let first = routes.route("shop", SERVER, b"/users/1", false);
        let second = routes.route("shop", SERVER, b"/users/2", false);
        assert!(Arc::ptr_eq(&first, &second));
        assert_eq!(
            (&*first.name(0), &*second.name(0)),
            ("GET /users/{id}", "GET /users/{id}")
        );
        assert!(Arc::ptr_eq(&first.name(0), &second.name(0)));
        assert_eq!(&*first.name(METHODS.len() - 1), "HTTP /users/{id}");
    }

    #[test]
    fn a_position_with_too_many_names_overflows_and_frequent_ones_stay() {
        let mut routes = routes(Bounds::default());
        for _ in 0..20 {
            routes.text("shop", "/users/settings");
        }
        let names: Vec<String> = (0..80_u8)
            .map(|n| format!("/users/na{}{}", char::from(b'a' + n / 26), char::from(b'a' + n % 26)))
            .collect();
        let seen: Vec<String> = names.iter().map(|name| routes.text("shop", name)).collect();
        assert_eq!(seen[0], names[0], "the first are names");
        assert_eq!(seen[79], "/users/{*}", "the last are too many");
        assert_eq!(
            routes.text("shop", &names[0]),
            "/users/{*}",
            "also those that came before"
        );
        assert_eq!(
            routes.text("shop", "/users/settings"),
            "/users/settings",
            "seen often before"
        );
        assert_eq!(routes.text("shop", "/orders/list"), "/orders/list", "another position");
        assert_eq!(routes.text("other", &names[0]), names[0], "another service");
        assert_eq!(
            routes.text("shop", "/users/nazz/orders"),
            "/users/{*}/orders",
            "what follows is kept"
        );
    }

    #[test]
    fn placeholders_are_not_counted() {
        let mut routes = routes(Bounds {
            names: 2,
            ..Bounds::default()
        });
        for path in [
            "/a/1",
            "/a/x@y.z",
            "/a/3f2504e0-4f89-11d3-9a0c-0305e82c3301",
            "/a/b",
            "/a/c",
        ] {
            assert!(!routes.text("shop", path).contains("{*}"), "{path}");
        }
        assert_eq!(routes.text("shop", "/a/d"), "/a/{*}");
    }

    #[test]
    fn positions_of_a_service_and_services_are_bounded() {
        let mut routes = routes(Bounds {
            names: 1000,
            positions: 50,
            services: 4,
            ..Bounds::default()
        });
        let letters = |n: u8| format!("/{}/{}", char::from(b'a' + n / 26), char::from(b'a' + n % 26));
        for n in 0..200 {
            routes.text("shop", &letters(n));
        }
        assert_eq!(routes.services.values().map(|guard| guard.positions).max(), Some(50));
        assert_eq!(routes.text("shop", "/zebra"), "/{*}");
        for n in 0..100 {
            routes.text(&n.to_string(), "/a");
            assert!(routes.services.len() <= 4);
        }
    }

    #[test]
    fn caches_are_bounded_and_hold_no_path() {
        let mut routes = routes(Bounds {
            cached: 64,
            ..Bounds::default()
        });
        for n in 0..10_000 {
            routes.text("shop", &format!("/users/{n}"));
        }
        assert!(routes.paths.len() <= 64 && routes.shared.len() <= 64);
    }

    #[test]
    fn targets_that_are_no_path() {
        let mut routes = routes(Bounds::default());
        assert_eq!(routes.text("shop", "*"), "*");
        assert_eq!(routes.text("shop", "/"), "/");
    }
}
