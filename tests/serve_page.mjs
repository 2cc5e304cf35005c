// Drives the page of a running service in a headless browser, by the keyboard, light and dark.
//
//     beamfuse serve &
//     node tests/serve_page.mjs http://127.0.0.1:5000 [DIRECTORY_FOR_PICTURES]
//
// Needs Node 18 or later and Chromium, as `chromium` on the path or named by CHROMIUM; nothing from npm.
import { spawn } from "node:child_process";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";

const [url, pictures] = process.argv.slice(2);
const profile = mkdtempSync(join(tmpdir(), "page-"));
const browser = spawn(process.env.CHROMIUM || "chromium",
  ["--headless=new", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe", "--window-size=1200,1400", `--user-data-dir=${profile}`],
  { stdio: ["ignore", "ignore", "ignore", "pipe", "pipe"] });
const [to, from] = [browser.stdio[3], browser.stdio[4]];
let last = 0, buffer = "";
const waiting = new Map(), events = [];

from.on("data", data => {
  buffer += data;
  for (let end; (end = buffer.indexOf("\0")) >= 0; buffer = buffer.slice(end + 1)) {
    const message = JSON.parse(buffer.slice(0, end));
    if (message.id) {
      const [resolve, reject] = waiting.get(message.id);
      message.error ? reject(new Error(message.error.message)) : resolve(message.result);
    } else events.push(message);
  }
});

function send(method, params = {}, sessionId) {
  to.write(JSON.stringify({ id: ++last, method, params, sessionId }) + "\0");
  return new Promise((resolve, reject) => waiting.set(last, [resolve, reject]));
}

function check(holds, what) {
  if (!holds) throw new Error(what);
  console.log("ok   ", what);
}

async function main() {
  const { targetId } = await send("Target.createTarget", { url: "about:blank" });
  const { sessionId } = await send("Target.attachToTarget", { targetId, flatten: true });
  const page = (method, params) => send(method, params, sessionId);
  const evaluate = async expression => {
    const { result, exceptionDetails } = await page("Runtime.evaluate", { expression, awaitPromise: true, returnByValue: true });
    if (exceptionDetails) throw new Error(exceptionDetails.text + " in " + expression);
    return result.value;
  };
  const until = async (expression, what) => {
    for (let turn = 0; turn < 300; turn++) {
      if (await evaluate(expression)) return check(true, what);
      await new Promise(resolve => setTimeout(resolve, 50));
    }
    check(false, what + ": " + await evaluate("document.body.innerText"));
  };
  const press = async (key, code, modifiers = 0) => {
    const of = { key, code: key, windowsVirtualKeyCode: code, modifiers };
    await page("Input.dispatchKeyEvent", { type: "keyDown", ...of });
    await page("Input.dispatchKeyEvent", { type: "keyUp", ...of });
  };
  const picture = async name => {
    if (!pictures) return;
    const { data } = await page("Page.captureScreenshot", { format: "png" });
    writeFileSync(join(pictures, name), Buffer.from(data, "base64"));
  };

  for (const domain of ["Page", "Runtime", "Network", "Log"]) await page(domain + ".enable");
  await page("Page.navigate", { url });
  await until("document.readyState === 'complete' && document.getElementById('model').options.length > 0", "the models are listed");
  await until("document.activeElement.id === 'source'", "the text has the focus");
  await page("Input.insertText", { text: "A dog runs." });
  await until("document.getElementById('text').textContent === 'Ein Hund rennt.'", "what is typed is translated");
  await until("document.querySelectorAll('#lists td.score').length === 3", "three translations have their scores");
  await picture("light.png");
  await page("Input.insertText", { text: "\nTwo cats sleep." });
  await until("document.getElementById('text').textContent.split('\\n').length === 2", "lines are kept");
  await page("Input.insertText", { text: " <img src=x onerror=alert(1)>" });
  await until("document.getElementById('lists').textContent.includes('<img')", "a text is a text");
  check(await evaluate("document.querySelectorAll('img').length") === 0, "and no element");
  await press("Enter", 13, 2);
  await until("document.querySelector('#drawing iframe')?.srcdoc.includes('<svg')", "Ctrl+Enter draws the search");
  const frames = (await page("Page.getFrameTree")).frameTree.childFrames;
  check(frames?.length === 1, "the drawing is shown in a frame");
  const seen = [];
  for (let turn = 0; turn < 9; turn++) {
    await press("Tab", 9);
    seen.push(await evaluate("document.activeElement.id || document.activeElement.tagName"));
  }
  for (const id of ["text", "best", "draw"]) check(seen.includes(id), `Tab reaches ${id}`);
  await evaluate("document.getElementById('source').focus()");
  await press("Tab", 9, 8);
  await until("document.activeElement.id === 'model'", "Shift+Tab reaches the models");
  await page("Emulation.setEmulatedMedia", { features: [{ name: "prefers-color-scheme", value: "dark" }] });
  const dark = await evaluate("getComputedStyle(document.body).backgroundColor");
  await picture("dark.png");
  await page("Emulation.setEmulatedMedia", { features: [{ name: "prefers-color-scheme", value: "light" }] });
  check(dark !== await evaluate("getComputedStyle(document.body).backgroundColor"), "dark is another colour");
  await evaluate("document.getElementById('source').value = ''; document.getElementById('source').dispatchEvent(new Event('input'))");
  await until("document.getElementById('text').textContent === ''", "no text, no translation");

  const asked = events.filter(event => event.method === "Network.requestWillBeSent").map(event => event.params.request.url);
  const outside = asked.filter(asked => !asked.startsWith(url) && !asked.startsWith("data:") && !asked.startsWith("about:"));
  check(asked.length > 4 && outside.length === 0, "nothing is fetched from elsewhere " + outside);
  const broken = events.filter(event => event.method === "Runtime.exceptionThrown"
    || (event.method === "Log.entryAdded" && event.params.entry.level === "error"));
  check(broken.length === 0, "no error in the console " + JSON.stringify(broken));
}

try {
  await main();
} catch (error) {
  console.error("FAILED", error.message);
  process.exitCode = 1;
}
browser.kill();
await new Promise(resolve => browser.on("exit", resolve));
rmSync(profile, { recursive: true, force: true, maxRetries: 5 });
