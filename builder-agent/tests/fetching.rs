//! The box's own HTTP client, with correct and with hostile servers.

mod common;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use common::http::{converse, ok, server};
use net::Fetch;
use net::{ConnectError, HttpClient, HttpError, Want};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use url::Url;

const SMALL: Want = Want { max_bytes: 1000 };

fn fetch() -> Fetch {
    Fetch {
        allow_private: true,
        certificates: PathBuf::from("/nonexistent/certificates.pem"),
        stall: Duration::from_millis(500),
        whole: Duration::from_secs(60),
    }
}

fn client() -> HttpClient {
    HttpClient::new(&fetch())
}

fn url(address: SocketAddr, path: &str) -> Url {
    Url::parse(&format!("http://{address}{path}")).expect("a URL")
}

#[tokio::test]
async fn a_kept_connection_serves_the_next_request() {
    let (address, connections) = server(|path| ok(format!("you asked for {path}"))).await;
    let client = client();
    for path in ["/a", "/b?c=d", "/e"] {
        let body = client.get_all(&url(address, path), SMALL).await.expect("an answer");
        assert_eq!(body, format!("you asked for {path}").as_bytes());
    }
    assert_eq!(connections.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn a_kept_connection_that_was_closed_meanwhile_is_replaced() {
    let (address, connections) = server(|path| match path {
        "/again" => ok("there"),
        _ => b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\noneHTTP/1.1 400 Bye\r\n\r\n".to_vec(),
    })
    .await;
    let client = client();
    assert_eq!(client.get_all(&url(address, "/once"), SMALL).await.expect("an answer"), b"one");
    assert_eq!(client.get_all(&url(address, "/again"), SMALL).await.expect("an answer"), b"there");
    assert_eq!(connections.load(Ordering::Relaxed), 2);
}

#[tokio::test]
async fn connections_are_kept_for_a_limited_number_of_servers() {
    let client = client();
    let (first, connections) = server(|_| ok("first")).await;
    client.get_all(&url(first, "/"), SMALL).await.expect("an answer");
    for _ in 0..64 {
        let (address, _) = server(|_| ok("another")).await;
        client.get_all(&url(address, "/"), SMALL).await.expect("an answer");
    }
    client.get_all(&url(first, "/"), SMALL).await.expect("an answer");
    assert_eq!(connections.load(Ordering::Relaxed), 2, "the 65th server ended the connections of the others");
}

#[tokio::test]
async fn redirects_are_followed_up_to_a_limit() {
    let (address, _) = server(|path| match path {
        "/start" => b"HTTP/1.1 302 Found\r\nLocation: next/one?x=1\r\nContent-Length: 0\r\n\r\n".to_vec(),
        "/next/one?x=1" => ok("arrived"),
        _ => b"HTTP/1.1 301 Moved\r\nLocation: /loop\r\nContent-Length: 4\r\n\r\nhere".to_vec(),
    })
    .await;
    assert_eq!(client().get_all(&url(address, "/start"), SMALL).await.expect("an answer"), b"arrived");
    let error = client().get_all(&url(address, "/loop"), SMALL).await.expect_err("a loop");
    assert!(error.to_string().contains("more than 10 redirects, the last to 'http://127.0.0.1:"), "{error}");
}

#[tokio::test]
async fn a_redirect_to_another_scheme_is_refused() {
    let (address, _) = server(|_| {
        b"HTTP/1.1 302 Found\r\nLocation: file:///etc/shadow\r\nContent-Length: 0\r\n\r\n".to_vec()
    })
    .await;
    let error = client().get_all(&url(address, "/"), SMALL).await.expect_err("refused");
    assert!(matches!(error, HttpError::BadRedirect { .. }), "{error}");
}

#[tokio::test]
async fn private_addresses_are_refused_unless_configured_however_they_are_named() {
    let (address, connections) = server(|_| ok("secret")).await;
    let client = HttpClient::new(&Fetch { allow_private: false, ..fetch() });
    let port = address.port();
    for host in ["127.0.0.1", "localhost", "[::ffff:127.0.0.1]", "0x7f.1", "2130706433", "0.0.0.0"] {
        let url = Url::parse(&format!("http://{host}:{port}/")).expect("a URL");
        let error = client.get_all(&url, SMALL).await.expect_err("refused");
        assert!(
            matches!(&error, HttpError::Connect { cause: ConnectError::Private { .. }, .. }),
            "{host}: {error}"
        );
        assert!(error.to_string().contains("set `fetch.allow-private = true`"), "{error}");
    }
    assert_eq!(connections.load(Ordering::Relaxed), 0, "nothing may have been connected to");
}

#[tokio::test]
async fn a_body_larger_than_wanted_is_refused_announced_or_not() {
    let (address, _) = server(|path| match path {
        "/announced" => b"HTTP/1.1 200 OK\r\nContent-Length: 100000000000\r\n\r\n".to_vec(),
        _ => {
            let mut endless = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec();
            for _ in 0..100 {
                endless.extend_from_slice(b"64\r\n");
                endless.extend_from_slice(&[b'x'; 100]);
                endless.extend_from_slice(b"\r\n");
            }
            endless
        }
    })
    .await;
    for path in ["/announced", "/chunked"] {
        let error = client().get_all(&url(address, path), SMALL).await.expect_err("too large");
        assert!(matches!(error, HttpError::TooLarge { limit: 1000, .. }), "{error}");
    }
}

#[tokio::test]
async fn a_body_cut_short_is_an_error() {
    let (address, _) = server(|path| match path {
        "/length" => b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\nConnection: close\r\n\r\nhalf".to_vec(),
        _ => Vec::new(),
    })
    .await;
    // The server waits for a second request instead of sending the rest.
    let error = client().get_all(&url(address, "/length"), SMALL).await.expect_err("cut short");
    assert!(matches!(error, HttpError::Stalled { got: 4, .. }), "{error}");
    let error = client().get_all(&url(address, "/hang-up"), SMALL).await.expect_err("no answer");
    assert!(matches!(error, HttpError::Broken { .. }), "{error}");
}

#[tokio::test]
async fn a_server_that_drips_meets_the_deadline() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.expect("a client");
        let _ = stream.read(&mut [0; 1000]).await;
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 900\r\n\r\n").await;
        while stream.write_all(b"x").await.is_ok() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    });
    let client = HttpClient::new(&Fetch { whole: Duration::from_secs(1), ..fetch() });
    let error = client.get_all(&url(address, "/"), SMALL).await.expect_err("too slow");
    assert!(matches!(error, HttpError::TooSlow { .. }), "{error}");
}

#[tokio::test]
async fn statuses_are_told_apart() {
    let (address, _) =
        server(|path| format!("HTTP/1.1 {} X\r\nContent-Length: 2\r\n\r\nno", &path[1..]).into_bytes()).await;
    let client = client();
    for (status, missing, passing) in [
        (404, true, false),
        (410, true, false),
        (403, true, false),
        (500, false, true),
        (429, false, true),
        (204, false, false),
    ] {
        let error = client.get_all(&url(address, &format!("/{status}")), SMALL).await.expect_err("not 200");
        assert_eq!((error.is_missing(), error.is_passing()), (missing, passing), "{error}");
    }
}

#[tokio::test]
async fn https_needs_a_certificate_that_fits() {
    use tokio_rustls::rustls::pki_types::pem::PemObject;
    use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
    let tls = |name: &str| Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/tls").join(name);
    let certificate = CertificateDer::from_pem_file(tls("server.pem")).expect("a certificate");
    let key = PrivateKeyDer::from_pem_file(tls("server.key")).expect("a key");
    let provider = Arc::new(tokio_rustls::rustls::crypto::aws_lc_rs::default_provider());
    let config = tokio_rustls::rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key)
        .expect("a server");
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = listener.local_addr().expect("an address").port();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            if let Ok(stream) = acceptor.accept(stream).await {
                tokio::spawn(converse(stream, |_| ok("sealed")));
            }
        }
    });
    let url = |host: &str| Url::parse(&format!("https://{host}:{port}/")).expect("a URL");
    let good = HttpClient::new(&Fetch { certificates: tls("ca.pem"), ..fetch() });
    assert_eq!(good.get_all(&url("localhost"), SMALL).await.expect("an answer"), b"sealed");
    let error = good.get_all(&url("127.0.0.1"), SMALL).await.expect_err("another name");
    assert!(error.to_string().contains("cannot agree on a TLS connection with '127.0.0.1'"), "{error}");
    let stranger = HttpClient::new(&Fetch { certificates: tls("server.pem"), ..fetch() });
    let error = stranger.get_all(&url("localhost"), SMALL).await.expect_err("unknown authority");
    assert!(error.to_string().contains("UnknownIssuer"), "{error}");
    let error = client().get_all(&url("localhost"), SMALL).await.expect_err("no authorities");
    assert!(error.to_string().contains("set `fetch.certificates`"), "{error}");
}
