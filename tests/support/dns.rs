//! A name server for the names that tests give to registries. In the node ring, the machine and its Pods ask it.
//!
//! Not `/etc/hosts`: Go's programs keep what they read there for five seconds, and Pods have files of their own.
//! Services have no names here.

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, UdpSocket},
    sync::{Arc, Mutex},
    thread,
};

const ADDRESS_RECORD: u16 = 1;

/// The header of a message (RFC 1035, section 4.1.1).
const HEADER: usize = 12;

/// Answers as long as the process lives.
#[derive(Debug)]
pub(crate) struct Names {
    known: Arc<Mutex<BTreeMap<String, Known>>>,
}

/// What is known of a name.
#[derive(Clone, Copy, Debug)]
enum Known {
    Address(Ipv4Addr),
    /// It may be there, but whoever knows does not answer.
    Failing,
}

impl Names {
    /// Serves at an address of the machine.
    pub(crate) fn serve(address: Ipv4Addr) -> Self {
        let socket = UdpSocket::bind((address, 53)).unwrap();
        let known = Arc::<Mutex<BTreeMap<_, _>>>::default();
        let names = Self {
            known: Arc::clone(&known),
        };
        thread::spawn(move || {
            let mut query = [0; 512];
            loop {
                let (length, asker) = socket.recv_from(&mut query).unwrap();
                if let Some(answer) = answer(&query[..length], &known.lock().unwrap()) {
                    // An asker that is gone is none of our business.
                    drop(socket.send_to(&answer, asker));
                }
            }
        });
        names
    }

    /// Gives a name to an address; `*.` before it stands for all names below.
    pub(crate) fn add(&self, name: &str, address: Ipv4Addr) {
        self.set(name, Known::Address(address));
    }

    /// Nobody can say whether there is such a name.
    pub(crate) fn fail(&self, name: &str) {
        self.set(name, Known::Failing);
    }

    fn set(&self, name: &str, known: Known) {
        self.known.lock().unwrap().insert(name.to_owned(), known);
    }
}

/// The answer to a query of one question: an address, none of the type asked for, no such name, or that it fails.
/// Nothing to what is no such query.
fn answer(query: &[u8], names: &BTreeMap<String, Known>) -> Option<Vec<u8>> {
    let mut labels = Vec::new();
    let mut at = HEADER;
    loop {
        let length = usize::from(*query.get(at)?);
        at += 1;
        if length == 0 {
            break;
        }
        labels.push(str::from_utf8(query.get(at..at + length)?).ok()?);
        at += length;
    }
    let question = query.get(HEADER..at + 4)?;
    let kind = u16::from_be_bytes([query[at], query[at + 1]]);
    let known = find(names, &labels.join(".").to_ascii_lowercase());
    let (code, address) = match known {
        Some(Known::Address(address)) => (0, Some(address)),
        Some(Known::Failing) => (2, None),
        None => (3, None),
    };
    let found = address.filter(|_| kind == ADDRESS_RECORD);

    let mut answer = query[..2].to_vec();
    // An answer, with recursion.
    answer.extend([0x81, 0x80 | code]);
    answer.extend([0, 1, 0, u8::from(found.is_some()), 0, 0, 0, 0]);
    answer.extend(question);
    if let Some(address) = found {
        // The name of the question, an address of the internet, to be kept for no time, four bytes.
        answer.extend([0xc0, 0x0c, 0, 1, 0, 1, 0, 0, 0, 0, 0, 4]);
        answer.extend(address.octets());
    }
    Some(answer)
}

fn find(names: &BTreeMap<String, Known>, name: &str) -> Option<Known> {
    let above = name
        .match_indices('.')
        .map(|(dot, _)| format!("*{}", &name[dot..]));
    let mut candidates = [name.to_owned()].into_iter().chain(above);
    candidates.find_map(|candidate| names.get(&candidate).copied())
}
