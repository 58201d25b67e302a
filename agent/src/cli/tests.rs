#![allow(clippy::unwrap_used, clippy::panic, reason = "test")]
use super::*;

fn parsed(line: &str) -> Result<Command, clap::Error> {
    Cli::try_parse_from(line.split_whitespace()).map(|cli| cli.command)
}

#[test]
fn the_definition_is_sound() {
    Cli::command().debug_assert();
}

#[test]
fn every_command_of_the_contract_is_known() {
    for line in [
        "spanwire run --config f --include exe=*/a,port=1 --include uid=0 --exclude path=/x --otlp http://h --store d \
         --listen 127.0.0.1:0 --log debug",
        "spanwire run --no-store",
        "spanwire doctor --json",
        "spanwire status --json --api http://127.0.0.1:1",
        "spanwire services --json --store d",
        "spanwire traces --service s --operation o --status error --min-duration 5ms --tenant t --attribute a=b \
         --attribute c=d=e --since 15m --until 1m --max-duration 1h --limit 5 --json",
        "spanwire traces --follow",
        "spanwire trace 0af7651916cd43dd8448eb211c80319c --json --store d",
        "spanwire config check f",
        "spanwire config show",
        "spanwire config schema",
        "spanwire verify --json",
        "spanwire top",
        "spanwire hub --config f",
        "spanwire completions bash",
        "spanwire man",
    ] {
        parsed(line).unwrap_or_else(|error| panic!("{line}: {error}"));
    }
}

#[test]
fn bad_usage_exits_with_2() {
    for line in [
        "spanwire",
        "spanwire fly",
        "spanwire run --colour",
        "spanwire run --store d --no-store",
        "spanwire run --log loud",
        "spanwire trace",
        "spanwire traces --min-duration 5",
        "spanwire traces --limit 0",
        "spanwire traces --status ok",
        "spanwire traces --attribute nothing",
        "spanwire traces --follow --until 1m",
        "spanwire completions cmd",
    ] {
        assert_eq!(
            parsed(line).unwrap_err().exit_code(),
            i32::from(EXIT_BAD_USAGE),
            "{line}"
        );
    }
}

#[test]
fn help_and_version_exit_with_0() {
    for line in ["spanwire --help", "spanwire --version", "spanwire run --help"] {
        assert_eq!(parsed(line).unwrap_err().exit_code(), 0, "{line}");
    }
}

#[test]
fn an_attribute_is_split_at_its_first_equals_sign() {
    let Ok(Command::Traces(args)) = parsed("spanwire traces --attribute a=b=c") else {
        panic!("traces");
    };
    assert_eq!(args.attribute, [("a".to_owned(), "b=c".to_owned())]);
    assert_eq!((args.limit, args.since.as_str()), (20, "15m"));
    assert_eq!(args.source.api, "http://127.0.0.1:4319");
}

#[test]
fn flags_of_run_reach_the_configuration() {
    let Ok(Command::Run(args)) = parsed("spanwire run --include port=8080 --no-store --listen 127.0.0.1:9") else {
        panic!("run");
    };
    let config = args.configuration().unwrap();
    assert_eq!(config.capture.include[0].to_string(), "port=8080");
    assert!(!config.store.enabled);
    assert_eq!(config.api.listen.port(), 9);
    let Ok(Command::Run(args)) = parsed("spanwire run --include 8080") else {
        panic!("run");
    };
    assert!(args.configuration().unwrap_err().to_string().starts_with("--include: "));
}

#[test]
fn completions_name_the_commands() {
    for shell in clap_complete::Shell::value_variants() {
        let mut script = Vec::new();
        completions(*shell, &mut script).unwrap();
        let script = String::from_utf8(script).unwrap();
        assert!(script.contains("doctor") && script.contains("min-duration"), "{shell}");
    }
}

#[test]
fn the_manual_page_describes_every_command() {
    let mut page = Vec::new();
    manual(&mut page).unwrap();
    let page = String::from_utf8(page).unwrap();
    assert!(page.starts_with(".ie") || page.starts_with(".TH"), "roff");
    for command in Cli::command().get_subcommands() {
        assert!(page.contains(&format!(".SH \"SPANWIRE {}\"", command.get_name().to_uppercase())));
    }
    assert!(page.contains(".SH \"SPANWIRE CONFIG CHECK\""));
    assert!(page.contains("min\\-duration") && page.contains("Exit status"));
    assert!(
        !page.contains("spanwire\\-run(1)"),
        "there are no other pages to refer to"
    );
}

#[test]
fn only_commands_without_an_agent_are_done_here() {
    assert!(offline(&parsed("spanwire status").unwrap()).is_none());
    assert!(offline(&parsed("spanwire run").unwrap()).is_none());
    assert_eq!(offline(&parsed("spanwire verify").unwrap()), Some(ExitCode::FAILURE));
    assert_eq!(
        offline(&parsed("spanwire config show").unwrap()),
        Some(ExitCode::FAILURE)
    );
    let missing = parsed("spanwire config check no/such.yaml").unwrap();
    assert_eq!(offline(&missing), Some(ExitCode::from(EXIT_BAD_USAGE)));
}
