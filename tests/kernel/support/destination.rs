//! An HTTP server that accepts every POST, or refuses each with 503.

use std::io::{BufRead, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex};

/// A request's head, and its body.
pub type Request = (String, Vec<u8>);

/// An HTTP server that accepts every POST while it is up, and otherwise refuses it with 503.
pub struct Destination {
    pub address: String,
    pub up: Arc<AtomicBool>,
    pub refused: Arc<AtomicBool>,
    received: Arc<Mutex<Vec<Request>>>,
}

impl Destination {
    pub fn start(up: bool) -> Destination {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("its number").to_string();
        let it = Destination {
            address,
            up: Arc::new(up.into()),
            refused: Arc::default(),
            received: Arc::default(),
        };
        let (up, refused, received) = (it.up.clone(), it.refused.clone(), it.received.clone());
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let (up, refused, received) = (up.clone(), refused.clone(), received.clone());
                std::thread::spawn(move || {
                    let mut stream = BufReader::new(stream);
                    while let Some(request) = request(&mut stream) {
                        let response: &[u8] = if up.load(Relaxed) {
                            received.lock().expect("its requests").push(request);
                            b"HTTP/1.1 204 No Content\r\n\r\n"
                        } else {
                            refused.store(true, Relaxed);
                            b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 4\r\n\r\ndown"
                        };
                        let _ = stream.get_mut().write_all(response);
                    }
                });
            }
        });
        it
    }

    pub fn received(&self) -> Vec<Request> {
        self.received.lock().expect("its requests").clone()
    }
}

fn request(stream: &mut BufReader<TcpStream>) -> Option<Request> {
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        if stream.read_line(&mut head).ok()? == 0 {
            return None;
        }
    }
    let lower = head.to_lowercase();
    let length = lower.lines().find_map(|line| line.strip_prefix("content-length: "))?;
    let mut body = vec![0; length.trim().parse().ok()?];
    stream.read_exact(&mut body).ok()?;
    Some((lower, body))
}
