//! A plain file server for binary caches. Counts the files that it sends.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Component, Path, PathBuf};
use std::sync::{Arc, Mutex};

/// Serves a folder on a free port of the loopback interface until the process ends.
pub struct FileServer {
    address: SocketAddr,
    sent: Arc<Mutex<Vec<String>>>,
}

impl FileServer {
    pub fn start(folder: &Path) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("an address");
        let sent: Arc<Mutex<Vec<String>>> = Arc::default();
        let (folder, log) = (folder.to_owned(), sent.clone());
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let (folder, log) = (folder.clone(), log.clone());
                std::thread::spawn(move || serve(stream, &folder, &log));
            }
        });
        Self { address, sent }
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Number of files sent whose name has this ending.
    pub fn sent(&self, suffix: &str) -> usize {
        self.sent.lock().expect("log").iter().filter(|path| path.ends_with(suffix)).count()
    }

    /// Number of NAR files sent, with any compression.
    pub fn nars(&self) -> usize {
        self.sent.lock().expect("log").iter().filter(|path| path.starts_with("nar/")).count()
    }
}

/// One connection; several requests.
fn serve(stream: TcpStream, folder: &Path, log: &Mutex<Vec<String>>) {
    let mut reader = BufReader::new(stream.try_clone().expect("a second handle"));
    let mut writer = stream;
    let mut line = String::new();
    while reader.by_ref().take(8192).read_line(&mut line).is_ok_and(|n| n > 0) {
        let path = line.split(' ').nth(1).unwrap_or("/").trim_start_matches('/').to_owned();
        loop {
            line.clear();
            match reader.by_ref().take(8192).read_line(&mut line) {
                Ok(n) if n > 0 && line != "\r\n" => {}
                _ => break,
            }
        }
        line.clear();
        let file = PathBuf::from(&path);
        let plain = file.components().all(|part| matches!(part, Component::Normal(_)));
        let (status, body) = match std::fs::read(folder.join(&file)) {
            Ok(body) if plain => ("200 OK", body),
            _ => ("404 Not Found", Vec::new()),
        };
        if status == "200 OK" {
            log.lock().expect("log").push(path);
        }
        let head = format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\n\r\n", body.len());
        if writer.write_all(head.as_bytes()).and_then(|()| writer.write_all(&body)).is_err() {
            return;
        }
    }
}
