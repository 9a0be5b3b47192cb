//! A real Chromium without a window, driven by WebDriver (<https://www.w3.org/TR/webdriver2/>): the
//! dozen requests that tests need, which would else cost twenty crates.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};

use super::server;

/// How an element is named in answers; a constant of the standard.
const ELEMENT: &str = "element-6066-11e4-a52e-4f735466cecf";

/// One page of a browser of its own; closed when dropped.
pub struct Browser {
    driver: Child,
    address: String,
    session: String,
    client: reqwest::Client,
}

impl Browser {
    pub async fn start() -> Self {
        let mut driver = Command::new(server("ONELOG_TEST_CHROMEDRIVER"))
            .arg("--port=0")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("chromedriver starts: deploy/stack install --browser");
        let said = BufReader::new(driver.stdout.take().expect("its output"));
        let port = said.lines().map_while(Result::ok).find_map(|it| {
            let (_, port) = it.rsplit_once("successfully on port ")?;
            Some(port.trim_end_matches('.').to_owned())
        });
        let address = format!("127.0.0.1:{}", port.expect("chromedriver says its port"));
        let client = reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(60));
        let client = client.build().expect("a client");
        let mut browser = Self { driver, address, session: String::new(), client };
        let options = json!({"args": [
            "--headless=new",
            // Root is refused a sandbox, and containers have little /dev/shm.
            "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu", "--no-first-run",
            "--disable-background-networking", "--disable-component-update", "--no-proxy-server",
        ]});
        let wanted = json!({"capabilities": {"alwaysMatch": {
            "browserName": "chrome",
            "goog:chromeOptions": options,
            "goog:loggingPrefs": {"browser": "ALL"},
        }}});
        let made = browser.request("POST", "/session", Some(wanted)).await;
        browser.session = made["sessionId"].as_str().expect("a session").to_owned();
        browser
    }

    /// Ends when the page has been loaded.
    pub async fn open(&self, url: &str) {
        self.post("/url", json!({"url": url})).await;
    }

    /// The value that an asynchronous function with this body returns.
    pub async fn run(&self, body: &str) -> Value {
        let script = format!("return (async () => {{\n{body}\n}})()");
        self.post("/execute/sync", json!({"script": script, "args": []})).await
    }

    /// As a person does, so that an element which is hidden or covered is a fault.
    pub async fn click(&self, selector: &str) {
        let element = self.element(selector).await;
        self.post(&format!("/element/{element}/click"), json!({})).await;
    }

    /// Types into a field, instead of what it has.
    pub async fn fill(&self, selector: &str, text: &str) {
        let element = self.element(selector).await;
        self.post(&format!("/element/{element}/clear"), json!({})).await;
        self.post(&format!("/element/{element}/value"), json!({"text": text})).await;
    }

    /// What is written there; nothing if there is no such element.
    pub async fn text(&self, selector: &str) -> String {
        let selector = json!(selector);
        let script = format!("return document.querySelector({selector})?.textContent ?? ''");
        self.run(&script).await.as_str().expect("a text").to_owned()
    }

    /// As wide as a phone.
    pub async fn narrow(&self, width: u32) {
        let metrics =
            json!({"width": width, "height": 640, "deviceScaleFactor": 1, "mobile": false});
        let command = json!({"cmd": "Emulation.setDeviceMetricsOverride", "params": metrics});
        self.post("/goog/cdp/execute", command).await;
    }

    /// What the console says, since it was last asked.
    pub async fn console(&self) -> Vec<String> {
        let entries = self.post("/se/log", json!({"type": "browser"})).await;
        let entries = entries.as_array().expect("a list").iter();
        entries.map(|it| format!("{} {}", it["level"], it["message"])).collect()
    }

    async fn element(&self, selector: &str) -> String {
        let found =
            self.post("/element", json!({"using": "css selector", "value": selector})).await;
        found[ELEMENT].as_str().expect("an element").to_owned()
    }

    async fn post(&self, path: &str, body: Value) -> Value {
        self.request("POST", &format!("/session/{}{path}", self.session), Some(body)).await
    }

    async fn request(&self, method: &str, path: &str, body: Option<Value>) -> Value {
        let method = method.parse().expect("a method");
        let mut request = self.client.request(method, format!("http://{}{path}", self.address));
        if let Some(body) = body {
            request = request.header("content-type", "application/json").body(body.to_string());
        }
        let answer = request.send().await.expect("chromedriver answers");
        let status = answer.status();
        let text = answer.text().await.expect("a body");
        let value: Value = serde_json::from_str(&text).expect("JSON");
        assert!(status.is_success(), "{path}: {}", value["value"]);
        value["value"].clone()
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        let ended = end(&self.address, &self.session);
        let killed = self.driver.kill().and_then(|()| self.driver.wait());
        if !std::thread::panicking() {
            ended.expect("Chromium ends");
            killed.expect("chromedriver ends");
        }
    }
}

/// Chromium outlives a chromedriver that is killed, so its session is ended first.
fn end(address: &str, session: &str) -> std::io::Result<()> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(Duration::from_secs(20)))?;
    let head = format!("DELETE /session/{session} HTTP/1.1\r\nHost: {address}\r\n");
    stream.write_all(format!("{head}Content-Length: 0\r\nConnection: close\r\n\r\n").as_bytes())?;
    // The first byte of the answer will do: the connection may stay open.
    stream.read_exact(&mut [0])
}
