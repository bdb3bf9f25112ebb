//! A name server for the names that tests give to registries. The machine and its Pods ask it.
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
    addresses: Arc<Mutex<BTreeMap<String, Ipv4Addr>>>,
}

impl Names {
    /// Serves at an address of the machine.
    pub(crate) fn serve(address: Ipv4Addr) -> Self {
        let socket = UdpSocket::bind((address, 53)).unwrap();
        let addresses = Arc::<Mutex<BTreeMap<_, _>>>::default();
        let known = Arc::clone(&addresses);
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
        Self { addresses }
    }

    /// Gives a name to an address.
    pub(crate) fn add(&self, name: &str, address: Ipv4Addr) {
        self.addresses.lock().unwrap().insert(name.to_owned(), address);
    }
}

/// The answer to a query of one question: an address, none of the type asked for, or no such name. Nothing to
/// what is no such query.
fn answer(query: &[u8], addresses: &BTreeMap<String, Ipv4Addr>) -> Option<Vec<u8>> {
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
    let known = addresses.get(&labels.join(".").to_ascii_lowercase());
    let found = known.filter(|_| kind == ADDRESS_RECORD);

    let mut answer = query[..2].to_vec();
    // An answer, with recursion, in order (0) or without such a name (3).
    answer.extend([0x81, if known.is_some() { 0x80 } else { 0x83 }]);
    answer.extend([0, 1, 0, u8::from(found.is_some()), 0, 0, 0, 0]);
    answer.extend(question);
    if let Some(address) = found {
        // The name of the question, an address of the internet, to be kept for no time, four bytes.
        answer.extend([0xc0, 0x0c, 0, 1, 0, 1, 0, 0, 0, 0, 0, 4]);
        answer.extend(address.octets());
    }
    Some(answer)
}
