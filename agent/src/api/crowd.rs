//! Who may be connected at a time by TCP: whoever is silent makes room for whoever comes.

use std::net::IpAddr;

use tokio::task::AbortHandle;

/// Connections from one address.
const FROM_ONE: usize = 16;

/// The connections there are, oldest first.
pub struct Crowd {
    most: usize,
    all: Vec<(IpAddr, AbortHandle)>,
}

impl Crowd {
    pub fn new(most: usize) -> Crowd {
        Crowd { most, all: Vec::new() }
    }

    /// Makes room for one more from an address: its own oldest goes if it has too many, or else the oldest of whoever has the
    /// most.
    pub fn make_room(&mut self, from: IpAddr) {
        self.all.retain(|(_, connection)| !connection.is_finished());
        let of = |all: &[(IpAddr, AbortHandle)], one| all.iter().filter(|(from, _)| *from == one).count();
        let whose = if of(&self.all, from) >= FROM_ONE {
            Some(from)
        } else if self.all.len() >= self.most {
            self.all.iter().map(|(from, _)| *from).max_by_key(|from| of(&self.all, *from))
        } else {
            None
        };
        if let Some(at) = whose.and_then(|whose| self.all.iter().position(|(from, _)| *from == whose)) {
            self.all.remove(at).1.abort();
        }
    }

    pub fn add(&mut self, from: IpAddr, connection: AbortHandle) {
        self.all.push((from, connection));
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn the_silent_make_room_and_those_of_others_stay() {
        let mut crowd = Crowd::new(20);
        let address = |n: u8| IpAddr::from([10, 0, 0, n]);
        let mut come = |n: u8| {
            let task = tokio::spawn(std::future::pending::<()>());
            crowd.make_room(address(n));
            crowd.add(address(n), task.abort_handle());
            task
        };
        let few = [come(1), come(2)];
        let many: Vec<_> = (0..40).map(|_| come(3)).collect();
        let others: Vec<_> = (4..14).map(&mut come).collect();
        tokio::time::sleep(Duration::from_millis(20)).await;
        assert!(few.iter().chain(&others).all(|task| !task.is_finished()));
        let left: Vec<bool> = many.iter().map(|task| !task.is_finished()).collect();
        // Of 20, twelve are others'; the newest of the many stay.
        assert_eq!(left.iter().filter(|left| **left).count(), 8);
        assert!(left[32..].iter().all(|left| *left), "{left:?}");
    }
}
