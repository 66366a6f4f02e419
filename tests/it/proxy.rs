//! A line between a client and a server that can be disturbed.

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::watch,
};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Line {
    Whole,
    /// Requests arrive, answers do not.
    Mute,
    /// Connections end, new ones too.
    Cut,
}

/// Forwards to `server` for as long as the line is whole; gives the address to connect to.
pub(crate) async fn proxy(server: String) -> (String, watch::Sender<Line>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let (sender, line) = watch::channel(Line::Whole);
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            if *line.borrow() != Line::Cut {
                tokio::spawn(forward(client, server.clone(), line.clone()));
            }
        }
    });
    (address, sender)
}

async fn forward(client: TcpStream, server: String, mut line: watch::Receiver<Line>) {
    let (mut requests, mut to_client) = client.into_split();
    let (mut answers, mut to_server) = TcpStream::connect(server).await.unwrap().into_split();
    let mut mute = line.clone();
    let down = async {
        let mut buffer = vec![0; 65_536];
        while let Ok(length @ 1..) = answers.read(&mut buffer).await {
            if mute.wait_for(|line| *line != Line::Mute).await.is_err()
                || to_client.write_all(&buffer[..length]).await.is_err()
            {
                break;
            }
        }
    };
    tokio::select! {
        _ = tokio::io::copy(&mut requests, &mut to_server) => {}
        () = down => {}
        _ = line.wait_for(|line| *line == Line::Cut) => {}
    }
}
