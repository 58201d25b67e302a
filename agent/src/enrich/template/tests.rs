use proptest::prelude::*;

use super::*;

#[test]
fn the_documented_examples_hold() {
    let page = include_str!("../../../../docs/templating.md");
    let examples: Vec<(&str, &str)> = page
        .lines()
        .filter_map(|line| line.strip_prefix("| `/")?.strip_suffix("` |")?.split_once("` | `"))
        .collect();
    assert!(examples.len() >= 20, "the table was found");
    for (path, expected) in examples {
        assert_eq!(template(&format!("/{path}")), expected, "{path}");
    }
}

/// Every rule, and where they end.
#[test]
fn paths_and_their_templates() {
    let table: &[(&str, &str)] = &[
        ("/", "/"),
        ("", "/"),
        ("*", "*"),
        ("/users/4711/orders", "/users/{id}/orders"),
        ("/users/42", "/users/{id}"),
        ("/users/00000000000000000042", "/users/{id}"),
        ("/api/v1/products", "/api/v1/products"),
        ("/apis/apps/v1beta2/deployments", "/apis/apps/v1beta2/deployments"),
        ("/v1.2/items", "/v1.2/items"),
        ("/files/2.0.1/readme", "/files/2.0.1/readme"),
        ("/o/3F2504E0-4F89-11D3-9A0C-0305E82C3301", "/o/{uuid}"),
        ("/o/urn:uuid:3f2504e0-4f89-11d3-9a0c-0305e82c3301", "/o/{uuid}"),
        ("/o/%7B3f2504e0-4f89-11d3-9a0c-0305e82c3301%7D", "/o/{uuid}"),
        ("/commit/8a3f2b1", "/commit/{hash}"),
        ("/blob/da39a3ee5e6b4b0d3255bfef95601890afd80709", "/blob/{hash}"),
        ("/blob/deadbeefcafefeed", "/blob/{hash}"),
        ("/tx/0xdeadbeef", "/tx/{hash}"),
        ("/decade/facade/added", "/decade/facade/added"),
        ("/u/jane.doe@example.com/mail", "/u/{email}/mail"),
        ("/u/jane.doe%40example.com", "/u/{email}"),
        ("/@jane/posts", "/{handle}/posts"),
        ("/~jane/", "/{handle}/"),
        ("/host/10.1.2.3", "/host/{ip}"),
        ("/host/10.1.2.3:8080", "/host/{ip}"),
        ("/host/2001:db8::1", "/host/{ip}"),
        ("/host/%5B2001:db8::1%5D", "/host/{ip}"),
        ("/report/2024-01-31", "/report/{date}"),
        ("/report/31.01.2024", "/report/{date}"),
        ("/report/2024-01", "/report/{date}"),
        ("/report/2024-01-31T10:00:00Z", "/report/{date}"),
        ("/call/+41%2079%20123%2045%2067", "/call/{phone}"),
        ("/call/+41791234567", "/call/{phone}"),
        ("/call/555-123-4567", "/call/{phone}"),
        ("/price/12.50,3", "/price/{number}"),
        ("/at/47.3769,8.5417", "/at/{number}"),
        ("/delta/-5", "/delta/{number}"),
        ("/t/eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.c2lnbmF0dXJl", "/t/{token}"),
        ("/reset/9xKq2LmPz7TnWv4RbYc8", "/reset/{token}"),
        ("/reset/dGhpcyBpcyBhIHRva2Vu", "/reset/{token}"),
        ("/reset/qzxvkjwpfm", "/reset/{token}"),
        ("/short/aB3xY9", "/short/{id}"),
        ("/order/order-12345", "/order/{id}"),
        ("/order/INV-2024-0001", "/order/{id}"),
        ("/key/AKIAIOSFODNN7EXAMPLE", "/key/{token}"),
        ("/secret/sk_live_4eC39HqLyjWDarjtT1zdp7dc", "/secret/{token}"),
        ("/static/app.min.js", "/static/app.min.js"),
        ("/static/main.8f3a2b1c.js", "/static/{hash}.js"),
        ("/static/1234.PNG", "/static/{id}.png"),
        ("/img/logo@2x.png", "/img/logo@2x.png"),
        ("/favicon.ico", "/favicon.ico"),
        ("/.well-known/openid-configuration", "/.well-known/openid-configuration"),
        ("/data.tar.gz", "/data.tar.gz"),
        ("/helloworld.Greeter/SayHello", "/helloworld.Greeter/SayHello"),
        ("/grpc.health.v1.Health/Check", "/grpc.health.v1.Health/Check"),
        ("/getUserByID/HTTPServer", "/getUserByID/HTTPServer"),
        ("/v1/projects:search", "/v1/projects:search"),
        ("/odata/$metadata", "/odata/$metadata"),
        ("/odata/Users('jane')", "/odata/{text}"),
        ("/page2/web-10", "/page2/web-10"),
        ("/oauth2/sha256/i18n", "/oauth2/sha256/i18n"),
        ("/range/2-4", "/range/{number}"),
        ("/search/New%20York", "/search/{text}"),
        ("/blog/how-i-learned-to-stop-worrying-and-love", "/blog/{text}"),
        ("/wp-admin/admin-ajax.php", "/wp-admin/admin-ajax.php"),
        ("/cart;jsessionid=1A2B3C4D/view", "/cart/view"),
        ("/a?token=s3cret", "/a"),
        ("/a#s3cret", "/a"),
        ("http://user:s3cret@shop.example:80/cart/7", "/cart/{id}"),
        ("http://shop.example", "/"),
        ("//double//slash", "//double//slash"),
        ("/a/../b/./c", "/a/../b/./c"),
        ("/a%2Fb%2F42", "/a/b/{id}"),
        ("/bad%2", "/{text}"),
        ("/bad%zz/escape%", "/{text}/{text}"),
        ("/double%2541", "/{text}"),
        ("/nul%00byte/%0d%0aX-Evil:1", "/{bytes}/{bytes}"),
        ("/latin/caf%e9", "/latin/{bytes}"),
        ("/menu/caf%C3%A9", "/menu/café"),
        ("/%E3%82%AB%E3%83%86%E3%82%B4%E3%83%AA", "/カテゴリ"),
        ("/bidi/a%E2%80%AEb", "/bidi/{text}"),
        ("/html/<script>", "/html/{text}"),
        ("/shell/$(id)", "/shell/{text}"),
    ];
    let wrong: Vec<_> = table
        .iter()
        .map(|(raw, expected)| (*raw, *expected, template(raw)))
        .filter(|(_, expected, actual)| expected != actual)
        .collect();
    assert!(wrong.is_empty(), "(path, expected, actual): {wrong:#?}");
}

fn cut_template(raw: &[u8], cut: bool) -> String {
    let mut out = String::new();
    Splitter::default()
        .split(raw, cut)
        .into_iter()
        .flatten()
        .for_each(|segment| segment.write(&mut out));
    out
}

#[test]
fn too_deep_too_long_and_cut() {
    let deep = "/a".repeat(40);
    assert_eq!(template(&deep), format!("{}/{{*}}", "/a".repeat(DEPTH)));
    assert_eq!(template(&format!("/{}", "word-".repeat(30))), "/{token}");
    assert_eq!(
        cut_template(b"/users/profile/jane-do", true),
        "/users/profile/{*}",
        "what was cut may be the beginning of anything"
    );
}

#[test]
fn the_buffer_is_overwritten() {
    let mut splitter = Splitter::default();
    assert_eq!(
        splitter.split(b"/reset/hunter%32", false).into_iter().flatten().count(),
        2
    );
    splitter.wipe();
    assert!(splitter.decoded.is_empty());
    let spare = splitter.decoded.spare_capacity_mut();
    assert!(spare.len() >= 13, "the allocation is kept");
}

fn longest_digit_run(text: &str) -> usize {
    text.split(|c: char| !c.is_ascii_digit())
        .map(str::len)
        .max()
        .unwrap_or(0)
}

/// Names with three digits in a row that are on the list.
fn without_known(text: &str) -> String {
    let known = [
        "sha224", "sha256", "sha384", "sha512", "x509", "h264", "h265", "i386", "iso8601",
    ];
    known
        .iter()
        .fold(text.to_lowercase(), |text, known| text.replace(known, ""))
}

proptest! {
    #[test]
    fn any_bytes_give_a_printable_template(raw in proptest::collection::vec(any::<u8>(), 0..300), cut: bool) {
        let out = cut_template(&raw, cut);
        prop_assert!(!out.chars().any(char::is_control));
        prop_assert!(!out.contains(['?', '#', ';', '%', ' ']));
        prop_assert!(out.len() <= 3 * raw.len() + 64);
    }

    #[test]
    fn no_three_digits_in_a_row_leave(raw in "(/[a-zA-Z0-9._~%@:-]{0,40}){1,6}") {
        prop_assert!(longest_digit_run(&without_known(&template(&raw))) < 3, "{} -> {}", raw, template(&raw));
    }

    #[test]
    fn a_template_is_its_own_template(raw in "(/[a-zA-Z0-9._-]{0,24}){1,4}") {
        // Placeholders aside: `{` is in no name.
        let once = template(&raw);
        if !once.contains('{') {
            prop_assert_eq!(template(&once), once);
        }
    }

    #[test]
    fn encoding_hides_nothing(raw in "(/[a-z0-9@.-]{1,20}){1,4}") {
        let encoded: String = raw.bytes().map(|byte| if byte == b'/' { "/".into() } else { format!("%{byte:02X}") }).collect();
        prop_assert_eq!(template(&encoded), template(&raw));
    }

    #[test]
    fn secrets_are_replaced(
        hex in "[0-9a-f]{16,64}",
        mixed in "[A-Za-z]{3,8}[0-9]{3,8}[A-Za-z0-9]{4,20}",
        card in "[0-9]{13,19}",
        mail in "[a-z]{3,10}[.][a-z]{3,10}@[a-z]{3,10}[.](com|org|ch)",
    ) {
        for secret in [&hex, &mixed, &card, &mail] {
            for path in [format!("/a/{secret}/b"), format!("/a/x-{secret}"), format!("/a/{secret}.json"), format!("/a;k={secret}/b")] {
                prop_assert!(!template(&path).contains(secret.as_str()), "{} -> {}", path, template(&path));
            }
        }
    }
}
