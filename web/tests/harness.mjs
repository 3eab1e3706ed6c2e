// The real program and a real browser, both ended with the test.
import { spawn, spawnSync } from 'node:child_process';
import { existsSync, readFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { chromium } from 'playwright-core';

const root = join(dirname(fileURLToPath(import.meta.url)), '..', '..');

/** What looks for barriers, as text: it runs in the page. */
export const axe = readFileSync(createRequire(import.meta.url).resolve('axe-core/axe.min.js'), 'utf8');

/** Nothing that is waited for takes so long, unless it never comes. */
export const PATIENCE = 60_000;

let built;

/** The program: $STEADFAST_BIN, or built once from these sources. */
export function program() {
  built ??= process.env.STEADFAST_BIN ?? build();
  return built;
}

function build() {
  const made = spawnSync('cargo', ['build', '--locked', '--quiet', '--package', 'steadfast-cli'], {
    cwd: root,
    stdio: 'inherit',
  });
  if (made.status !== 0) throw new Error('the program does not build');
  return join(process.env.CARGO_TARGET_DIR ?? join(root, 'target'), 'debug', 'steadfast');
}

/** A running demo. */
export class Demo {
  static async start(listen = '127.0.0.1:0') {
    const demo = new Demo();
    demo.process = spawn(program(), ['demo', '--listen', listen], { stdio: ['ignore', 'pipe', 'pipe'] });
    demo.ended = new Promise((resolve) => demo.process.once('exit', resolve));
    let said = '';
    let complaints = '';
    demo.process.stderr.on('data', (text) => (complaints = (complaints + text).slice(-4000)));
    await new Promise((resolve, reject) => {
      const timer = setTimeout(() => reject(new Error(`the demo did not start: ${said}${complaints}`)), PATIENCE);
      demo.process.stdout.on('data', (text) => {
        said += text;
        // What it says last; by then all is up.
        if (!said.includes('Ctrl-C')) return;
        clearTimeout(timer);
        resolve();
      });
      demo.ended.then((status) => reject(new Error(`the demo ended with ${status}: ${complaints}`)));
    });
    demo.url = said.match(/http:\/\/[\d.]+:\d+/)[0];
    demo.redis = Number(said.match(/kill -9 (\d+)/)[1]);
    return demo;
  }

  get address() {
    return new URL(this.url).host;
  }

  async ask(times) {
    for (let n = 0; n < times; n += 1) {
      const answer = await fetch(`${this.url}/v1/queries/user_by_id?id=${(n % 20) + 1}`);
      if (!answer.ok) throw new Error(`${answer.status}`);
      await answer.arrayBuffer();
    }
  }

  async stop() {
    if (this.process.exitCode === null) this.process.kill('SIGTERM');
    await this.ended;
  }
}

export async function browser() {
  const known = [process.env.CHROMIUM, '/usr/bin/chromium', '/usr/bin/chromium-browser', '/usr/bin/google-chrome'];
  const executablePath = known.find((path) => path && existsSync(path));
  if (!executablePath) throw new Error('there is no Chromium; install it, or name it in $CHROMIUM');
  return chromium.launch({
    executablePath,
    args: ['--no-sandbox', '--disable-quic', '--disable-background-networking', '--disable-component-update'],
  });
}

/** A page with what went wrong on it: errors of the console and of scripts, and requests to anybody else. */
export async function open(chromium, demo, options = {}) {
  const page = await chromium.newPage({ viewport: { width: 1440, height: 1000 }, reducedMotion: 'reduce', ...options });
  page.setDefaultTimeout(PATIENCE);
  const wrong = [];
  page.on('pageerror', (error) => wrong.push(`script: ${error.message}`));
  page.on('console', (message) => {
    if (message.type() === 'error' || message.type() === 'warning') wrong.push(`console: ${message.text()}`);
  });
  page.on('request', (request) => {
    const { protocol, host } = new URL(request.url());
    if (protocol !== 'data:' && protocol !== 'blob:' && host !== demo.address)
      wrong.push(`outside request: ${request.url()}`);
  });
  await page.goto(demo.url);
  return { page, wrong };
}

/** For a test. */
export const limits = { timeout: 4 * PATIENCE };

/** A service that answers; a loaded machine may be slow at it, or a young one a little behind. */
export const serving = (page) =>
  page.waitForFunction(() => /All is well|are slow|are stale/.test(document.querySelector('#headline').textContent));
export const headline = (page, words) =>
  page.waitForFunction((words) => document.querySelector('#headline').textContent.includes(words), words);
export const live = (page) => page.waitForSelector('body[data-link=live]');
export const history = (page, words) => page.locator('#history-rows tr', { hasText: words });
