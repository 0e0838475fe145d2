//! Only verified bytes get the final name, whatever a server does; interrupted transfers go on where they stopped.

use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use dsd_data::{ArchiveFacts, Patience, Result, download, manifest};
use dsd_random::Stream;
use sha2::{Digest, Sha256};

use crate::message;

const NONE: Duration = Duration::ZERO;
const IMPATIENT: Patience =
    Patience { attempts: 4, first_wait: NONE, longest_wait: NONE, silence: Duration::from_secs(20) };

/// What the server sends for request number `.0` with the head `.1`.
type Answer = dyn Fn(usize, &str) -> Vec<u8> + Send;

/// A server on this machine, with the heads of the requests that it got.
struct Server {
    address: String,
    heads: Arc<Mutex<Vec<String>>>,
}

fn serve(answer: Box<Answer>) -> Server {
    let listener = TcpListener::bind("127.0.0.1:0").expect("binds");
    let address = listener.local_addr().expect("has an address").to_string();
    let heads = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&heads);
    // The thread ends with the test program.
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { continue };
            let head = head(&mut stream);
            let number = {
                let mut seen = seen.lock().expect("not poisoned");
                seen.push(head.clone());
                seen.len() - 1
            };
            let _ = stream.write_all(&answer(number, &head));
        }
    });
    Server { address, heads }
}

fn head(stream: &mut TcpStream) -> String {
    let (mut bytes, mut one) = (Vec::new(), [0u8; 1]);
    while !bytes.ends_with(b"\r\n\r\n") && stream.read(&mut one).is_ok_and(|count| count == 1) {
        bytes.push(one[0]);
    }
    String::from_utf8_lossy(&bytes).to_lowercase()
}

/// A response with these lines in its head.
fn response(status: &str, lines: &[String], body: &[u8]) -> Vec<u8> {
    let mut bytes = format!("HTTP/1.1 {status}\r\nconnection: close\r\n").into_bytes();
    lines.iter().for_each(|line| bytes.extend_from_slice(format!("{line}\r\n").as_bytes()));
    bytes.extend_from_slice(b"\r\n");
    bytes.extend_from_slice(body);
    bytes
}

fn content() -> Vec<u8> {
    (0..50_000u32).map(|at| (at * 7 % 251) as u8).collect()
}

fn length(count: usize) -> String {
    format!("content-length: {count}")
}

/// First byte that a request asks for.
fn asked(head: &str) -> Option<usize> {
    let rest = head.split("range: bytes=").nth(1)?;
    rest.split('-').next()?.parse().ok()
}

/// The whole or the rest, as asked.
fn honest(head: &str, etag: &str) -> Vec<u8> {
    let (whole, etag) = (content(), format!("etag: {etag}"));
    match asked(head) {
        Some(from) if from < whole.len() => {
            let span = format!("content-range: bytes {from}-{}/{}", whole.len() - 1, whole.len());
            response("206 Partial Content", &[length(whole.len() - from), span, etag], &whole[from..])
        }
        Some(_) => response("416 Range Not Satisfiable", &[length(0)], b""),
        None => response("200 OK", &[length(whole.len()), etag], &whole),
    }
}

/// Cut after some bytes of the whole response.
fn cut(mut bytes: Vec<u8>, count: usize) -> Vec<u8> {
    bytes.truncate(count);
    bytes
}

fn facts(server: &Server, sized: bool) -> ArchiveFacts {
    let archives = &manifest("camvid").expect("is known").archives;
    let hash = Sha256::digest(content()).iter().map(|byte| format!("{byte:02x}")).collect();
    ArchiveFacts {
        file: "made.tar".to_string(),
        url: Some(format!("http://{}/made.tar", server.address)),
        bytes: sized.then_some(content().len() as u64),
        sha256: Some(hash),
        ..archives[0].clone()
    }
}

fn fetch(facts: &ArchiveFacts, folder: &Path) -> Result<PathBuf> {
    download(facts, folder, 60_000, IMPATIENT, &|_, _, _| {})
}

#[test]
fn a_file_arrives_whole_and_is_kept_when_it_is_asked_for_again() {
    for sized in [true, false] {
        let folder = tempfile::tempdir().expect("folder");
        let server = serve(Box::new(|_, head| honest(head, "\"v1\"")));
        let facts = facts(&server, sized);
        for _ in 0..2 {
            let path = fetch(&facts, folder.path()).unwrap_or_else(|error| panic!("{error}"));
            assert_eq!(fs::read(path).expect("reads"), content());
        }
        assert_eq!(server.heads.lock().expect("heads").len(), 1, "what is verified is not asked for again");
        assert_eq!(fs::read_dir(folder.path()).expect("lists").count(), 1, "no part is left");
        fs::write(folder.path().join("made.tar"), b"other").expect("writes");
        assert!(message(fetch(&facts, folder.path())).contains("remove it to download it again"));
    }
}

#[test]
fn drops_are_continued_and_little_is_sent_twice() {
    let folder = tempfile::tempdir().expect("folder");
    // Of each answer between 500 and 4 000 bytes arrive.
    let server = serve(Box::new(|request, head| {
        let count = 500 + Stream::new(17, "drops", 0, request as u64).below(3_500);
        cut(honest(head, "\"v1\""), count)
    }));
    let path = fetch(&facts(&server, true), folder.path()).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(fs::read(path).expect("reads"), content());
    let heads = server.heads.lock().expect("heads");
    assert!(heads[1..].iter().all(|head| head.contains("if-range: \"v1\"") && asked(head).is_some()));
    let drops = heads.len() - 1;
    assert!((20..=40).contains(&drops), "{drops} drops");
    println!("figure W2 drops {drops} in one transfer");
}

#[test]
fn a_body_with_a_wrong_byte_never_gets_the_name() {
    let bodies = if std::env::var_os("DSD_DEEP").is_some() { 10_000 } else { 1000 };
    let folder = tempfile::tempdir().expect("folder");
    // The length is right, so that only the hash can tell.
    let server = serve(Box::new(|request, _| {
        let mut stream = Stream::new(17, "bodies", 0, request as u64);
        let mut body = content()[..2_000].to_vec();
        for _ in 0..1 + stream.below(4) {
            body[stream.below(2_000)] ^= 1 + stream.below(255) as u8;
        }
        response("200 OK", &[length(2_000)], &body)
    }));
    let hash = Sha256::digest(&content()[..2_000]).iter().map(|byte| format!("{byte:02x}")).collect();
    let facts = ArchiveFacts { bytes: Some(2_000), sha256: Some(hash), ..facts(&server, true) };
    for number in 0..bodies {
        let text = message(fetch(&facts, folder.path()));
        assert!(text.contains("SHA-256") && text.contains("nothing was kept"), "{number}: {text}");
        assert_eq!(fs::read_dir(folder.path()).expect("lists").count(), 0, "{number}");
    }
    assert_eq!(server.heads.lock().expect("heads").len(), bodies, "a refused body is not asked for again");
    println!("figure W1 corrupted_bodies {bodies}");
}

#[test]
fn what_misbehaves_is_survived_or_refused_and_never_gets_the_name() {
    let whole = content();
    let ok = |lines: &[String], body: &[u8]| response("200 OK", lines, body);
    // A first answer that is cut in the middle, so that the second request continues.
    let first = |head: &str| cut(honest(head, "\"v1\""), 20_000);
    let survived: Vec<(&str, Box<Answer>)> = vec![
        ("200 to a range request", Box::new(move |n, head| if n == 0 { first(head) } else { honest("", "\"v1\"") })),
        ("another version midway", Box::new(move |n, head| if n == 0 { first(head) } else { honest("", "\"v2\"") })),
        (
            "503 with a wait",
            Box::new(|n, head| match n {
                0 | 1 => response("503 Busy", &["retry-after: 3600".into(), length(0)], b""),
                _ => honest(head, "\"v1\""),
            }),
        ),
        (
            "429",
            Box::new(|n, head| if n == 0 { response("429 Slow", &[length(0)], b"") } else { honest(head, "\"v1\"") }),
        ),
        (
            "416",
            Box::new(move |n, head| match n {
                0 => first(head),
                1 => response("416 No", &[length(0)], b""),
                _ => honest(head, "\"v1\""),
            }),
        ),
        ("a closed connection", Box::new(|n, head| if n == 0 { Vec::new() } else { honest(head, "\"v1\"") })),
        (
            "a garbage status line",
            Box::new(|n, head| if n == 0 { b"hello\r\n\r\n".to_vec() } else { honest(head, "\"v1\"") }),
        ),
        (
            "no length",
            Box::new({
                let whole = whole.clone();
                move |_, _| ok(&[], &whole)
            }),
        ),
        (
            "a redirect within the host",
            Box::new(|n, head| match n {
                0 => response("302 Found", &["location: /elsewhere.tar".into(), length(0)], b""),
                _ => honest(head, "\"v1\""),
            }),
        ),
        (
            "a part of other bytes",
            Box::new(move |n, head| match n {
                0 => cut(response("200 OK", &[length(50_000), "etag: \"v1\"".into()], &[9; 50_000]), 20_000),
                _ => honest(head, "\"v1\""),
            }),
        ),
    ];
    let mut tried = 0;
    for (what, answer) in survived {
        let folder = tempfile::tempdir().expect("folder");
        // "Other bytes" shows at the end only: the second command starts afresh.
        let facts = facts(&serve(answer), true);
        let outcome = fetch(&facts, folder.path()).or_else(|_| fetch(&facts, folder.path()));
        let path = outcome.unwrap_or_else(|error| panic!("{what}: {error}"));
        assert_eq!(fs::read(path).expect("reads"), whole, "{what}");
        tried += 1;
    }
    let mut other = whole.clone();
    other[777] ^= 1;
    let page = b"<html>moved</html>".to_vec();
    let refused: Vec<(&str, bool, &str, Box<Answer>)> = vec![
        ("404", true, "status 404", Box::new(|_, _| response("404 Gone", &[length(0)], b""))),
        ("304", true, "status 304", Box::new(|_, _| response("304 Same", &[], b""))),
        ("always dropped", true, "gave up after 4", Box::new(|_, _| cut(honest("", "\"v1\""), 30))),
        ("always 503", true, "status 503", Box::new(|_, _| response("503 Busy", &[length(0)], b""))),
        (
            "a wrong range",
            true,
            "another range",
            Box::new(move |n, head| match n {
                0 => first(head),
                _ => response("206 Partial", &[length(5), "content-range: bytes 3-7/50000".into()], b"xxxxx"),
            }),
        ),
        (
            "another length",
            true,
            "announces 18 bytes",
            Box::new({
                let page = page.clone();
                move |_, _| ok(&[length(18)], &page)
            }),
        ),
        ("a page instead", false, "SHA-256", Box::new(move |_, _| ok(&[length(18)], &page))),
        ("one wrong bit", true, "SHA-256", Box::new(move |_, _| ok(&[length(50_000)], &other))),
        ("too much", false, "announces 100000000 bytes", Box::new(move |_, _| ok(&[length(100_000_000)], &[0; 9]))),
        ("too much, unannounced", false, "sends more than 60000", Box::new(move |_, _| ok(&[], &[0; 70_000]))),
        (
            "a redirect loop",
            true,
            "redirects more than",
            Box::new(|_, _| response("302 Found", &["location: /made.tar".into(), length(0)], b"")),
        ),
        (
            "another host",
            true,
            "another host",
            Box::new(|_, _| response("302 Found", &["location: http://example.org/made.tar".into(), length(0)], b"")),
        ),
        (
            "another encoding",
            true,
            "another encoding",
            Box::new({
                let whole = whole.clone();
                move |_, _| ok(&[length(50_000), "content-encoding: gzip".into()], &whole)
            }),
        ),
        (
            "endless headers",
            true,
            "gave up",
            Box::new(move |_, _| {
                let lines: Vec<String> = (0..4000).map(|at| format!("x-{at}: {}", "y".repeat(40))).collect();
                response("200 OK", &lines, b"")
            }),
        ),
    ];
    for (what, sized, reason, answer) in refused {
        let folder = tempfile::tempdir().expect("folder");
        let text = message(fetch(&facts(&serve(answer), sized), folder.path()));
        assert!(text.contains(reason), "{what}: {text}");
        assert!(!folder.path().join("made.tar").exists(), "{what}");
        tried += 1;
    }
    assert_eq!(tried, 24);
    println!("figure W1 misbehaviours {tried}");
}

#[test]
fn two_at_once_and_a_folder_that_cannot_be_written() {
    let folder = tempfile::tempdir().expect("folder");
    let server = serve(Box::new(|_, head| honest(head, "\"v1\"")));
    let part = fs::File::create(folder.path().join("made.tar.part")).expect("creates");
    part.lock().expect("locks");
    assert!(message(fetch(&facts(&server, true), folder.path())).contains("another process"));
    drop(part);
    let blocked = folder.path().join("file");
    fs::write(&blocked, b"").expect("writes");
    assert!(message(fetch(&facts(&server, true), &blocked)).contains("cannot write"));
    let unhashed = ArchiveFacts { sha256: None, ..facts(&server, true) };
    assert!(message(fetch(&unhashed, folder.path())).contains("no hash"));
}
