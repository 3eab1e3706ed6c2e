// Builds web/dist from the sources. The result is committed, so that cargo needs no Node; `--check` proves that what is committed is
// what these sources give, and writes nothing.
import { build } from 'esbuild';
import { mkdir, readdir, readFile, rm, writeFile } from 'node:fs/promises';
import { dirname, join, relative } from 'node:path';
import { fileURLToPath } from 'node:url';

const here = dirname(fileURLToPath(import.meta.url));
const dist = join(here, 'dist');

/** Every file of the page by its path under dist. */
async function page() {
  const bundle = await build({
    absWorkingDir: here,
    entryPoints: {
      app: 'src/main.ts',
      theme: 'src/theme-early.ts',
      style: 'src/style.css',
      operations: 'src/operations.ts',
    },
    outdir: join(dist, 'assets'),
    bundle: true,
    minify: true,
    write: false,
    target: 'es2022',
    charset: 'utf8',
    format: 'iife',
    legalComments: 'none',
    external: ['/assets/*'],
  });
  const files = new Map();
  for (const file of bundle.outputFiles) files.set(relative(dist, file.path), Buffer.from(file.contents));
  const copied = {
    'index.html': 'src/index.html',
    'operations.html': 'src/operations.html',
    'assets/icon.svg': 'src/icon.svg',
    'assets/geist.woff2': 'vendor/geist/geist.woff2',
    'assets/geist-mono.woff2': 'vendor/geist/geist-mono.woff2',
  };
  for (const [to, from] of Object.entries(copied)) files.set(to, await readFile(join(here, from)));
  const licences = [];
  for (const name of ['uplot', 'geist']) {
    licences.push(`${name}\n\n${await readFile(join(here, 'vendor', name, 'LICENSE'), 'utf8')}`);
  }
  files.set('assets/licences.txt', Buffer.from(licences.join('\n\n')));
  return files;
}

async function committed() {
  const entries = await readdir(dist, { recursive: true, withFileTypes: true });
  return entries.filter((entry) => entry.isFile()).map((entry) => relative(dist, join(entry.parentPath, entry.name)));
}

/** Names of files that differ between dist and a fresh build; none if all is well. */
export async function differences() {
  const fresh = await page();
  const different = (await committed()).filter((name) => !fresh.has(name));
  for (const [name, bytes] of fresh) {
    const kept = await readFile(join(dist, name)).catch(() => null);
    if (!kept?.equals(bytes)) different.push(name);
  }
  return different;
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  if (process.argv.includes('--check')) {
    const different = await differences();
    if (different.length > 0) {
      console.error(`web/dist is not what web/src gives: ${different.join(', ')}; run 'npm run build' in web/`);
      process.exit(1);
    }
  } else {
    const files = await page();
    await rm(dist, { recursive: true, force: true });
    for (const [name, bytes] of files) {
      await mkdir(dirname(join(dist, name)), { recursive: true });
      await writeFile(join(dist, name), bytes);
    }
    console.log(
      [...files].map(([name, bytes]) => `${(bytes.length / 1024).toFixed(1).padStart(7)} kB  ${name}`).join('\n'),
    );
  }
}
