//! nginx, two workers unless told, with whatever locations a test needs.

use std::fmt::Write as _;

use anyhow::{Context, Result};

use super::App;
use crate::http;
use crate::place::{free_port, program, Place};
use crate::service::{Launch, Target};

/// Locations and upstreams of one nginx.
#[derive(Clone, Debug, Default)]
pub struct Site {
    one_worker: bool,
    upstreams: String,
    locations: String,
}

impl Site {
    pub fn new() -> Self {
        Self::default()
    }

    /// One worker in place of two: who serves a request is known then.
    pub fn one_worker(mut self) -> Self {
        self.one_worker = true;
        self
    }

    /// `/r/<id>` is answered from memory: nginx's cheapest request.
    pub fn returning(mut self) -> Self {
        self.locations.push_str("location /r/ { return 200 \"$uri ok\\n\"; }\n");
        self
    }

    /// `/status` tells how many requests nginx has begun.
    pub fn counting(self) -> Self {
        self.location("location /status { stub_status; }")
    }

    /// Any directives of the `http` block.
    pub fn http(mut self, text: &str) -> Self {
        self.upstreams.push_str(text);
        self.upstreams.push('\n');
        self
    }

    /// Any location or directive of the `server` block, as it stands in the configuration.
    pub fn location(mut self, text: &str) -> Self {
        self.locations.push_str(text);
        self.locations.push('\n');
        self
    }

    /// `/r/<id>` goes on as `/o/<id>/<hop>` to the first server that answers, over kept connections.
    pub fn proxying(mut self, hop: &str, servers: &[&Target]) -> Self {
        let _ = writeln!(self.upstreams, "upstream {hop} {{");
        for server in servers {
            let server = match server {
                Target::Tcp(addr) => addr.to_string(),
                Target::Unix(path) => format!("unix:{}", path.display()),
            };
            let _ = writeln!(self.upstreams, "  server {server} max_fails=0;");
        }
        self.upstreams.push_str("  keepalive 16;\n}\n");
        let _ = writeln!(
            self.locations,
            "location /r/ {{ rewrite ^/r/(.*)$ /o/$1/{hop} break; proxy_pass http://{hop}; proxy_http_version 1.1; \
             proxy_set_header Connection \"\"; proxy_next_upstream error timeout http_503; \
             proxy_read_timeout 60s; }}"
        );
        self
    }

    /// `/r/<id>` is run by a FastCGI server.
    pub fn fastcgi(mut self, script: &std::path::Path, server: &Target) -> Self {
        let server = match server {
            Target::Tcp(addr) => addr.to_string(),
            Target::Unix(path) => format!("unix:{}", path.display()),
        };
        let _ = writeln!(
            self.locations,
            "location /r/ {{ fastcgi_pass {server}; fastcgi_param SCRIPT_FILENAME {}; \
             fastcgi_param REQUEST_METHOD $request_method; fastcgi_param REQUEST_URI $request_uri; \
             fastcgi_param QUERY_STRING $query_string; fastcgi_param CONTENT_TYPE $content_type; \
             fastcgi_param CONTENT_LENGTH $content_length; fastcgi_param SERVER_PROTOCOL $server_protocol; }}",
            script.display()
        );
        self
    }

    /// Starts nginx in the foreground with a prefix of its own, access log off.
    pub fn start(&self, name: &str, place: &Place) -> Result<App> {
        let port = free_port()?;
        let target = Target::loopback(port);
        let home = place.join(name);
        std::fs::create_dir_all(home.join("temp"))?;
        let home_text = home.display();
        let Self {
            one_worker,
            upstreams,
            locations,
        } = self;
        let workers = if *one_worker { 1 } else { 2 };
        let config = place.write(
            &format!("{name}/nginx.conf"),
            &format!(
                "daemon off;\nworker_processes {workers};\npid {home_text}/pid;\nerror_log {home_text}/error.log warn;\n\
                 events {{ worker_connections 4096; }}\nhttp {{\n\
                 access_log off;\nkeepalive_requests 1000000;\n\
                 client_body_temp_path {home_text}/temp/body;\nproxy_temp_path {home_text}/temp/proxy;\n\
                 fastcgi_temp_path {home_text}/temp/fastcgi;\nuwsgi_temp_path {home_text}/temp/uwsgi;\n\
                 scgi_temp_path {home_text}/temp/scgi;\n{upstreams}\
                 server {{\nlisten 127.0.0.1:{port} backlog=4096;\nlisten [::1]:{port} backlog=4096;\n{locations}}}\n}}\n"
            ),
        )?;
        let service = Launch::new(name, program("nginx")?, place)
            .arg("-c")
            .arg(config)
            .arg("-p")
            .arg(&home)
            .arg("-e")
            .arg(home.join("error.log"))
            .start(std::slice::from_ref(&target))?;
        Ok(App { service, target })
    }
}

/// Requests that a [`Site::counting`] nginx has begun, the one that asks included.
pub fn requests_of(nginx: &App) -> Result<u64> {
    let page = http::get(&nginx.target, "/status")?.text();
    let counts = page.lines().nth(2).and_then(|line| line.split_whitespace().nth(2));
    counts
        .and_then(|count| count.parse().ok())
        .with_context(|| format!("not a stub_status page: {page}"))
}

/// As [`requests_of`], when nginx has begun all that was sent to it: requests that a load's end left unread count later.
/// Returns how many pages were asked for, too.
pub fn requests_of_idle(nginx: &App) -> Result<(u64, u64)> {
    let (mut count, mut pages) = (requests_of(nginx)?, 1);
    for _ in 0..100 {
        std::thread::sleep(std::time::Duration::from_millis(100));
        let now = requests_of(nginx)?;
        pages += 1;
        if now == count + 1 {
            return Ok((now, pages));
        }
        count = now;
    }
    anyhow::bail!("nginx goes on beginning requests")
}
