//! Apache, prefork: mod_php in the worker itself, or a CGI script forked by the worker.

use std::path::Path;

use anyhow::{Context, Result};

use super::{App, Calls};
use crate::place::{free_port, program, workload, Place};
use crate::service::{Launch, Target};

const MODULES: &str = "/usr/lib/apache2/modules";

/// Prefork with mod_php: a process per request, `app.php` answers everything.
pub fn mod_php(name: &str, place: &Place, calls: &Calls) -> Result<App> {
    let module = std::fs::read_dir(MODULES)
        .with_context(|| format!("no {MODULES}: install apache2"))?
        .flatten()
        .map(|entry| entry.path())
        .find(|path| {
            path.file_name()
                .is_some_and(|name| name.to_string_lossy().starts_with("libphp"))
        })
        .context("mod_php is not installed: install libapache2-mod-php")?;
    let script = copy(place, name, "app.php")?;
    let handler = format!(
        "LoadModule php_module {}\nAliasMatch \"^/(r|o)/.*\" \"{}\"\n\
         <FilesMatch \\.php$>\nSetHandler application/x-httpd-php\n</FilesMatch>\n",
        module.display(),
        script.display()
    );
    start(name, place, calls, &handler)
}

/// Prefork with mod_cgi: the named script of `tests/workloads` is forked while the request is open.
pub fn cgi(name: &str, place: &Place, calls: &Calls, script: &str) -> Result<App> {
    let script = copy(place, name, script)?;
    let handler = format!(
        "LoadModule cgi_module {MODULES}/mod_cgi.so\nScriptAliasMatch \"^/(r|o)/.*\" \"{}\"\n",
        script.display()
    );
    start(name, place, calls, &handler)
}

/// Prefork with mod_proxy: everything goes on to one server.
pub fn proxy(name: &str, place: &Place, to: &str) -> Result<App> {
    std::fs::create_dir_all(place.join(&format!("{name}/www")))?;
    let handler = format!(
        "LoadModule proxy_module {MODULES}/mod_proxy.so\nLoadModule proxy_http_module {MODULES}/mod_proxy_http.so\n\
         ProxyPass / {to}/\n"
    );
    start(name, place, &Calls::none(), &handler)
}

/// Apache's workers give up root, and the clone may lie where they may not read.
fn copy(place: &Place, name: &str, script: &str) -> Result<std::path::PathBuf> {
    place.write_script(
        &format!("{name}/www/{script}"),
        &std::fs::read_to_string(workload(script))?,
    )
}

fn start(name: &str, place: &Place, calls: &Calls, handler: &str) -> Result<App> {
    let port = free_port()?;
    let target = Target::loopback(port);
    let home = place.join(name);
    let home_text = home.display();
    let modules: Vec<_> = ["mpm_prefork", "authz_core", "alias", "mime", "env", "dir"]
        .iter()
        .filter(|module| Path::new(&format!("{MODULES}/mod_{module}.so")).exists())
        .map(|module| format!("LoadModule {module}_module {MODULES}/mod_{module}.so"))
        .collect();
    let modules = modules.join("\n");
    let config = place.write(
        &format!("{name}/apache.conf"),
        &format!(
            "{modules}\nServerRoot {home_text}\nServerName test.invalid\nListen 127.0.0.1:{port}\n\
             PidFile {home_text}/pid\nErrorLog {home_text}/error.log\nLogLevel warn\nDefaultRuntimeDir {home_text}\n\
             User www-data\nGroup www-data\nStartServers 4\nMinSpareServers 2\nMaxRequestWorkers 32\n\
             KeepAlive On\nKeepAliveTimeout 2\nTypesConfig /etc/mime.types\nPassEnv CALLS\n\
             DocumentRoot {home_text}/www\n<Directory {home_text}/www>\nRequire all granted\nOptions +ExecCGI\n</Directory>\n{handler}"
        ),
    )?;
    let service = Launch::new(name, program("apache2")?, place)
        .args(["-D", "FOREGROUND", "-f"])
        .arg(config)
        .env("CALLS", calls.as_env())
        .start(std::slice::from_ref(&target))?;
    Ok(App { service, target })
}
