//! Applications to trace, unmodified: one file each, started with a configuration of the test's own.
//!
//! Every application speaks the ground truth's language ([`crate::load`]): it answers any `/r/<id>` and `/o/<id>/<hop>`
//! with a text that names the id, after calling `/o/<id>/<hop>` at each of its [`Calls`], in order.

pub mod apache;
pub mod haproxy;
pub mod nginx;
pub mod node;
pub mod php_fpm;
pub mod python;
pub mod ruby;

use anyhow::Result;

use crate::service::{Service, Target};

/// What a service calls for each request: the hop's name and where it goes.
#[derive(Clone, Debug, Default)]
pub struct Calls(Vec<(&'static str, String)>);

impl Calls {
    pub fn none() -> Self {
        Self::default()
    }

    /// Adds a call of another application.
    pub fn to(self, hop: &'static str, app: &App) -> Result<Self> {
        Ok(self.to_url(hop, app.target.url()?))
    }

    /// Adds a call of whatever listens there.
    pub fn to_url(mut self, hop: &'static str, url: String) -> Self {
        self.0.push((hop, url));
        self
    }

    /// As the workloads read it from their environment: `hop=URL hop=URL`.
    pub fn as_env(&self) -> String {
        let calls: Vec<_> = self.0.iter().map(|(hop, url)| format!("{hop}={url}")).collect();
        calls.join(" ")
    }
}

/// A started application and where it listens.
pub struct App {
    pub service: Service,
    pub target: Target,
}
