//! The page: three files inside the binary, no build step, nothing from elsewhere.

use std::future::{ready, Ready};

use axum::http::header;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::Router;

use super::answer::Shared;

const HTML: &str = include_str!("../../../web/index.html");
const SCRIPT: &str = include_str!("../../../web/app.js");
const WATERFALL: &str = include_str!("../../../web/waterfall.js");
const STYLE: &str = include_str!("../../../web/style.css");

/// `/` and what it refers to.
pub(super) fn routes() -> Router<Shared> {
    Router::new()
        .route("/", get(|| file("text/html; charset=utf-8", HTML)))
        .route("/app.js", get(|| file("text/javascript; charset=utf-8", SCRIPT)))
        .route(
            "/waterfall.js",
            get(|| file("text/javascript; charset=utf-8", WATERFALL)),
        )
        .route("/style.css", get(|| file("text/css; charset=utf-8", STYLE)))
}

fn file(kind: &'static str, body: &'static str) -> Ready<Response> {
    ready(([(header::CONTENT_TYPE, kind)], body).into_response())
}
