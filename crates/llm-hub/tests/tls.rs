//! Transfers over TLS, with the root certificate of a private server.

#![allow(clippy::unwrap_used, reason = "a panic fails the test")]

use std::io::{Read, Write};
use std::net::TcpListener;
use std::process::{Command, Output};
use std::sync::Arc;

use llm_hub::{Client, Download, Patience};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned};

fn golden(name: &str) -> String {
    format!("{}/tests/golden/{name}", env!("CARGO_MANIFEST_DIR"))
}

/// Starts a server of one file with the certificate of localhost; returns its port.
fn serve() -> u16 {
    let certificate = CertificateDer::from_pem_file(golden("server.pem")).unwrap();
    let key = PrivateKeyDer::from_pem_file(golden("server.key")).unwrap();
    let config = ServerConfig::builder().with_no_client_auth().with_single_cert(vec![certificate], key).unwrap();
    let (config, listener) = (Arc::new(config), TcpListener::bind("127.0.0.1:0").unwrap());
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let connection = ServerConnection::new(Arc::clone(&config)).unwrap();
            let mut stream = StreamOwned::new(connection, stream.unwrap());
            // A client that does not trust the certificate goes away.
            if stream.read(&mut [0; 4096]).is_ok_and(|read| read > 0) {
                stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\nTo be").unwrap();
                stream.conn.send_close_notify();
                stream.flush().unwrap();
            }
        }
    });
    port
}

/// The program of the tests: fetches a URL and prints its content or the error.
#[test]
fn child_that_fetches() {
    let Some(url) = std::env::var_os("HUB_TEST_URL") else { return };
    let dir = tempfile::tempdir().unwrap();
    let to = dir.path().join("a.txt");
    let patience = Patience { tries: 1, ..Patience::default() };
    match Client::new(patience).fetch(&Download::new(url.to_str().unwrap(), &to), &mut |_| {}) {
        Ok(_) => eprintln!("content: {}", std::fs::read_to_string(to).unwrap()),
        Err(error) => eprintln!("{error}"),
    }
}

/// Fetches in a process of its own, as the certificates are a variable of the environment.
fn fetched(host: &str, port: u16, roots: &str) -> String {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "child_that_fetches", "--nocapture"]).env("SSL_CERT_FILE", roots);
    let output: Output = command.env("HUB_TEST_URL", format!("https://{host}:{port}/a.txt")).output().unwrap();
    String::from_utf8(output.stderr).unwrap()
}

#[test]
fn a_private_root_certificate_is_trusted_if_it_is_named() {
    let port = serve();
    let text = fetched("localhost", port, &golden("ca.pem"));
    assert!(text.contains("content: To be"), "{text}");
}

#[test]
fn an_unknown_certificate_and_another_host_are_refused() {
    let port = serve();
    for (host, roots) in [("localhost", String::new()), ("127.0.0.1", golden("ca.pem"))] {
        let text = fetched(host, port, &roots);
        assert!(text.contains("certificate") && text.contains("SSL_CERT_FILE"), "{text}");
    }
}
