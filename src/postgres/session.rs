//! A transport with its two buffers: messages in, bytes out.
//!
//! Invariant: every future here may be dropped at any await, in a `select!`, without losing or
//! repeating a byte: what was read is in the inbox, what is not yet written is in the outbox.

use std::time::Instant;

use bytes::BytesMut;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::postgres::connection_error::ConnectionError;
use crate::postgres::framing::{Frame, Inbox};
use crate::postgres::pace::{PILE_BYTES, PILE_TIME, Pace};
use crate::postgres::server_error::ServerError;
use crate::postgres::transport::Transport;

#[derive(Debug)]
pub(crate) struct Session {
    transport: Transport,
    inbox: Inbox,
    /// Written by [`Self::flush`].
    pub(crate) outbox: BytesMut,
    pace: Pace,
    /// Bytes pile up in the socket: we are woken for 64 KiB.
    piling: bool,
    /// When the present wait for 64 KiB ends. Kept across dropped futures, or a busy `select!`
    /// would begin the wait anew for ever.
    pile_until: Option<Instant>,
}

impl Session {
    pub(crate) fn new(transport: Transport) -> Self {
        Self {
            transport,
            inbox: Inbox::new(),
            outbox: BytesMut::new(),
            pace: Pace::default(),
            piling: false,
            pile_until: None,
        }
    }

    pub(crate) fn transport(&self) -> &Transport {
        &self.transport
    }

    /// The next message that is complete already.
    pub(crate) fn buffered(&mut self) -> Result<Option<Frame>, ConnectionError> {
        self.inbox.next().map_err(|it| ConnectionError::Protocol(it.to_string()))
    }

    /// The next message that is about what we do: notices and changed parameters are passed over,
    /// an ErrorResponse is returned as the error that it is.
    pub(crate) async fn message(&mut self) -> Result<Frame, ConnectionError> {
        loop {
            match self.buffered()? {
                Some(Frame { tag: b'N' | b'S' | b'A', .. }) => {}
                Some(Frame { tag: b'E', body }) => {
                    return Err(ConnectionError::from_server(ServerError::parse(&body)));
                }
                Some(frame) => return Ok(frame),
                None => self.fill().await?,
            }
        }
    }

    /// Reads what is there, and waits until something is.
    pub(crate) async fn fill(&mut self) -> Result<(), ConnectionError> {
        if self.piling {
            let until = *self.pile_until.get_or_insert_with(|| Instant::now() + PILE_TIME);
            match tokio::time::timeout_at(until.into(), self.read()).await {
                Ok(result) => return result,
                // Not enough came: the backlog is at its end, or the server is slower.
                Err(_) => self.set_piling(false)?,
            }
        }
        self.read().await
    }

    async fn read(&mut self) -> Result<(), ConnectionError> {
        let room = self.inbox.room();
        let bytes = self.transport.read_buf(room).await.map_err(ConnectionError::Lost)?;
        if bytes == 0 {
            return Err(ConnectionError::cut());
        }
        self.pile_until = None;
        let pile = self.pace.after_read(Instant::now(), bytes);
        self.set_piling(pile)
    }

    fn set_piling(&mut self, piling: bool) -> Result<(), ConnectionError> {
        if self.piling != piling {
            let bytes = if piling { PILE_BYTES } else { 1 };
            self.transport.set_wake_bytes(bytes).map_err(ConnectionError::Lost)?;
            self.piling = piling;
            self.pile_until = None;
        }
        Ok(())
    }

    /// Writes the outbox. If dropped, the rest is written by the next call.
    pub(crate) async fn flush(&mut self) -> Result<(), ConnectionError> {
        while !self.outbox.is_empty() {
            let written = self.transport.write_buf(&mut self.outbox).await;
            if written.map_err(ConnectionError::Lost)? == 0 {
                return Err(ConnectionError::cut());
            }
        }
        self.transport.flush().await.map_err(ConnectionError::Lost)
    }
}

/// A message that can't come here.
pub(crate) fn unexpected(frame: &Frame, doing: &str) -> ConnectionError {
    ConnectionError::Protocol(format!("message {:#04x} while {doing}", frame.tag))
}
