// Runs before anything is painted, so that a page set to dark does not flash white.
import { chosen } from './theme';

const theme = chosen();
if (theme !== 'system') document.documentElement.dataset.theme = theme;
